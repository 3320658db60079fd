//! One macro for all types that live in maps.

/// Declares a map key or value of exactly `$size` bytes. Refuses to compile if the size differs or if the compiler would
/// put padding between the fields: padding bytes of a key are compared by the kernel.
macro_rules! map_type {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal bytes {
            $( $(#[$field_meta:meta])* $vis:vis $field:ident: $type:ty, )+
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            $( $(#[$field_meta])* $vis $field: $type, )+
        }

        const _: () = assert!(size_of::<$name>() == $size, concat!(stringify!($name), ": size differs"));
        const _: () = assert!(0 $( + size_of::<$type>() )+ == $size, concat!(stringify!($name), ": hidden padding"));

        // SAFETY: repr(C), without padding as asserted above, and every field is an integer or an array of integers, for
        // which any bytes are a value.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}
