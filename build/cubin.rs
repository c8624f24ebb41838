//! The code that nvcc makes for one architecture.

/// Returns the size of each kernel's machine code in a cubin, in bytes.
///
/// A cubin is an ELF file of 64 bits, in which the code of a kernel is the section `.text.KERNEL`. `None` for anything else.
pub fn code_sizes(cubin: &[u8]) -> Option<Vec<(String, u64)>> {
    let number = |at: u64, bytes: usize| -> Option<u64> {
        let field = cubin.get(usize::try_from(at).ok()?..)?.get(..bytes)?;
        Some((field.iter().rev()).fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    // ELF, 64 bits, the least significant byte first.
    if !cubin.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (first, size) = (number(0x28, 8)?, number(0x3a, 2)?);
    let (count, of_names) = (number(0x3c, 2)?, number(0x3e, 2)?);
    let offset = |section: u64| number(first + section * size + 0x18, 8);
    let names = offset(of_names)?;
    let mut sizes = Vec::new();
    for section in 0..count {
        let at = first + section * size;
        let name = cubin.get((names + number(at, 4)?) as usize..)?;
        let name = name.split(|&byte| byte == 0).next()?;
        if let Some(kernel) = name.strip_prefix(b".text.") {
            sizes.push((
                String::from_utf8_lossy(kernel).into_owned(),
                number(at + 0x20, 8)?,
            ));
        }
    }
    Some(sizes)
}
