//! Parameter structs that kernel sources mirror, and the kernels that take them.

use super::Element;

/// A kernel and its launch bounds, as `KERNEL` of `kernels/device.cuh` defines it for each element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel {
    /// The names for f32, f16 and bf16.
    pub names: [&'static str; 3],
    /// The largest number of threads of a block.
    pub threads: u32,
    /// The smallest number of blocks of `threads` threads that a multiprocessor has registers for.
    pub blocks: u32,
}

impl Kernel {
    /// Returns the name of the kernel for an element type.
    pub fn name(&self, element: Element) -> &'static str {
        self.names[element as usize]
    }
}

/// Declares a struct that a kernel source mirrors, and a test of the same name that the source asserts its size and offsets.
/// The kernel source documents the fields. `for KERNEL = "name"(threads, blocks)` defines the constant `Self::KERNEL` for the
/// kernels `name_f32`, `name_f16` and `name_bf16`, which take the struct as their parameter.
macro_rules! kernel_params {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident in $source:literal
        $(for $($kernel:ident = $kernel_name:literal($threads:literal, $blocks:literal)),+)? {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        $(impl $name {
            $(pub(in crate::backend::launch) const $kernel: $crate::backend::launch::kernel_params::Kernel =
                $crate::backend::launch::kernel_params::Kernel {
                    names: [
                        concat!($kernel_name, "_f32"),
                        concat!($kernel_name, "_f16"),
                        concat!($kernel_name, "_bf16"),
                    ],
                    threads: $threads,
                    blocks: $blocks,
                };)+
        })?

        #[cfg(test)]
        impl $crate::backend::launch::kernel_params::tests::Mirrored for $name {
            const SOURCE: &'static str = $source;
            const NAME: &'static str = stringify!($name);
            const KERNELS: &'static [$crate::backend::launch::kernel_params::Kernel] =
                &[$($(Self::$kernel),+)?];

            fn fields() -> Vec<(&'static str, usize)> {
                vec![$((stringify!($field), std::mem::offset_of!($name, $field))),*]
            }
        }

        #[test]
        #[allow(non_snake_case)]
        fn $name() {
            $crate::backend::launch::kernel_params::tests::assert_mirrored::<$name>();
        }
    };
}

pub(super) use kernel_params;

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::Kernel;

    /// A struct that a kernel source mirrors.
    pub trait Mirrored {
        /// The file name of the source in the folder kernels/.
        const SOURCE: &'static str;
        const NAME: &'static str;
        const KERNELS: &'static [Kernel];
        /// Returns the name and the offset of each field.
        fn fields() -> Vec<(&'static str, usize)>;
    }

    /// Panics if the source does not assert that its struct has the same size and the same fields at the same offsets, or if no
    /// source defines the kernels with the same launch bounds. White space is ignored.
    pub fn assert_mirrored<P: Mirrored>() {
        let (name, bytes) = (P::NAME, size_of::<P>());
        let fields: String = (P::fields().iter())
            .map(|(field, offset)| format!(" && offsetof({name}, {field}) == {offset}"))
            .collect();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        let assertion = format!(
            "static_assert(sizeof({name}) == {bytes}{fields}, \"mirrors launch::{name}\");"
        );
        let source = fs::read_to_string(format!("{folder}/{}", P::SOURCE)).unwrap();
        assert_contains(&source, &assertion, P::SOURCE);
        let sources = fs::read_dir(folder).unwrap();
        let sources: String = sources
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        for kernel in P::KERNELS {
            // The launch bounds must fit the smallest architecture that kernels are compiled for.
            assert!(kernel.threads * kernel.blocks <= 1536 && kernel.blocks <= 16);
            for of_element in kernel.names {
                let (threads, blocks) = (kernel.threads, kernel.blocks);
                let definition = format!("KERNEL({of_element}, {name}, {threads}, {blocks})");
                assert_contains(&sources, &definition, folder);
            }
        }
    }

    fn assert_contains(source: &str, expected: &str, of: &str) {
        let packed = |text: &str| text.split_whitespace().collect::<String>();
        assert!(
            packed(source).contains(&packed(expected)),
            "{of} lacks\n{expected}"
        );
    }
}
