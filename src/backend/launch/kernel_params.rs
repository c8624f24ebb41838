//! Structs that kernels mirror.

/// A struct that a kernel source mirrors, field by field.
pub trait Mirrored {
    /// The source, in the folder kernels/.
    const SOURCE: &'static str;
    /// The assertion that the source makes of its own struct: the same size, and every field at the same offset.
    fn assertion() -> String;
}

/// Declares a struct that a kernel source mirrors. `for "name"` gives the kernels that take it as their
/// parameter, `name_f32`, `name_f16` and `name_bf16`, by `Self::kernel`.
macro_rules! kernel_params {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident in $source:literal $(for $kernel:literal)? {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_meta])* pub(in crate::backend::launch) $field: $type,)*
        }

        impl $crate::backend::launch::Mirrored for $name {
            const SOURCE: &'static str = $source;

            fn assertion() -> String {
                let name = stringify!($name);
                let fields: String = [$((stringify!($field), std::mem::offset_of!($name, $field))),*]
                    .map(|(field, offset)| format!(" && offsetof({name}, {field}) == {offset}"))
                    .concat();
                format!("static_assert(sizeof({name}) == {}{fields}, \"mirrors launch::{name}\");", size_of::<$name>())
            }
        }

        $(impl $name {
            /// The kernel for elements of a type.
            pub(in crate::backend::launch) fn kernel(element: $crate::backend::launch::Element) -> &'static str {
                match element {
                    $crate::backend::launch::Element::F32 => concat!($kernel, "_f32"),
                    $crate::backend::launch::Element::F16 => concat!($kernel, "_f16"),
                    $crate::backend::launch::Element::Bf16 => concat!($kernel, "_bf16"),
                }
            }
        })?
    };
}

pub(super) use kernel_params;

#[cfg(test)]
pub(super) mod tests {
    use super::Mirrored;

    /// Panics where the source does not assert that its struct is the host's, spaces apart.
    pub fn assert_mirrored<P: Mirrored>() {
        let path = format!("{}/kernels/{}", env!("CARGO_MANIFEST_DIR"), P::SOURCE);
        let source = std::fs::read_to_string(&path).unwrap();
        let packed = |text: &str| text.split_whitespace().collect::<String>();
        let expected = P::assertion();
        assert!(
            packed(&source).contains(&packed(&expected)),
            "{path} lacks\n{expected}"
        );
    }
}
