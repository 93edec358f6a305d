//! The proxy-wasm host functions that the filter calls, declared once more.
//!
//! The SDK has them too, but its versions panic on every status they do not expect, and a panic takes the VM and
//! with it every paused call of the worker. Here each returns its status. This is the only unsafe code of the
//! crate: each block passes pointers and lengths of one live slice, or takes over memory that the host obtained
//! from our own allocator for this very call.

/// A status of the host other than "ok", by its number in the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostError(pub(crate) u32);

/// Declares host functions: imports in wasm, and natively stand-ins that refuse everything, so that the logic can
/// be built and tested without a host.
macro_rules! host_functions {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?);)*) => {
        #[cfg(target_arch = "wasm32")]
        #[link(wasm_import_module = "env")]
        unsafe extern "C" {
            $(fn $name($($argument: $kind),*) -> u32;)*
        }

        $(
            #[cfg(not(target_arch = "wasm32"))]
            #[allow(clippy::too_many_arguments, reason = "the ABI has what it has")]
            unsafe fn $name($(_: $kind),*) -> u32 {
                NO_HOST
            }
        )*
    };
}

#[cfg(not(target_arch = "wasm32"))]
const NO_HOST: u32 = 10; // InternalFailure

host_functions! {
    fn proxy_get_log_level(level: *mut u32);
    fn proxy_get_current_time_nanoseconds(time: *mut u64);
    fn proxy_set_tick_period_milliseconds(period: u32);
    fn proxy_get_buffer_bytes(kind: u32, start: usize, size: usize, data: *mut *mut u8, length: *mut usize);
    fn proxy_set_buffer_bytes(kind: u32, start: usize, size: usize, data: *const u8, length: usize);
    fn proxy_get_header_map_pairs(kind: u32, data: *mut *mut u8, length: *mut usize);
    fn proxy_remove_header_map_value(kind: u32, name: *const u8, name_length: usize);
    fn proxy_replace_header_map_value(
        kind: u32, name: *const u8, name_length: usize, value: *const u8, value_length: usize,
    );
    fn proxy_get_property(path: *const u8, path_length: usize, data: *mut *mut u8, length: *mut usize);
    fn proxy_set_property(path: *const u8, path_length: usize, value: *const u8, value_length: usize);
    fn proxy_set_effective_context(context: u32);
    fn proxy_continue_stream(stream: u32);
    fn proxy_done();
    fn proxy_send_local_response(
        status: u32, details: *const u8, details_length: usize, body: *const u8, body_length: usize,
        headers: *const u8, headers_length: usize, grpc_status: i32,
    );
    fn proxy_define_metric(kind: u32, name: *const u8, name_length: usize, id: *mut u32);
    fn proxy_increment_metric(id: u32, offset: i64);
    fn proxy_get_shared_data(
        key: *const u8, key_length: usize, data: *mut *mut u8, length: *mut usize, version: *mut u32,
    );
    fn proxy_set_shared_data(key: *const u8, key_length: usize, data: *const u8, length: usize, version: u32);
    fn proxy_register_shared_queue(name: *const u8, name_length: usize, id: *mut u32);
    fn proxy_enqueue_shared_queue(id: u32, data: *const u8, length: usize);
    fn proxy_dequeue_shared_queue(id: u32, data: *mut *mut u8, length: *mut usize);
}

fn checked(status: u32) -> Result<(), HostError> {
    if status == 0 { Ok(()) } else { Err(HostError(status)) }
}

/// Calls a host function that returns memory, and takes the memory over.
fn received(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, HostError> {
    let mut data: *mut u8 = std::ptr::null_mut();
    let mut length: usize = 0;
    checked(call(&raw mut data, &raw mut length))?;
    if data.is_null() || length == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the host got `data` from `proxy_on_memory_allocate(length)`, the SDK's export, which leaks a boxed
    // slice of exactly this length, and gives it to nobody else.
    Ok(unsafe { Vec::from_raw_parts(data, length, length) })
}

pub(crate) fn log_level() -> Result<u32, HostError> {
    let mut level = 0;
    // SAFETY: the pointer is to a live local.
    checked(unsafe { proxy_get_log_level(&raw mut level) })?;
    Ok(level)
}

pub(crate) fn time_ns() -> Result<u64, HostError> {
    let mut time = 0;
    // SAFETY: the pointer is to a live local.
    checked(unsafe { proxy_get_current_time_nanoseconds(&raw mut time) })?;
    Ok(time)
}

pub(crate) fn set_tick_period(period_ms: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
}

pub(crate) fn buffer(kind: u32, start: usize, size: usize) -> Result<Vec<u8>, HostError> {
    // SAFETY: the pointers are to live locals of `received`.
    received(|data, length| unsafe { proxy_get_buffer_bytes(kind, start, size, data, length) })
}

pub(crate) fn replace_buffer(kind: u32, bytes: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointer and length of one live slice.
    checked(unsafe { proxy_set_buffer_bytes(kind, 0, usize::MAX, bytes.as_ptr(), bytes.len()) })
}

pub(crate) fn header_pairs(kind: u32) -> Result<Vec<u8>, HostError> {
    // SAFETY: the pointers are to live locals of `received`.
    received(|data, length| unsafe { proxy_get_header_map_pairs(kind, data, length) })
}

pub(crate) fn remove_header(kind: u32, name: &str) -> Result<(), HostError> {
    // SAFETY: pointer and length of one live slice.
    checked(unsafe { proxy_remove_header_map_value(kind, name.as_ptr(), name.len()) })
}

pub(crate) fn replace_header(kind: u32, name: &str, value: &str) -> Result<(), HostError> {
    // SAFETY: pointers and lengths of two live slices.
    checked(unsafe { proxy_replace_header_map_value(kind, name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
}

pub(crate) fn property(path: &str) -> Result<Vec<u8>, HostError> {
    // SAFETY: one live slice, and live locals of `received`.
    received(|data, length| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, length) })
}

pub(crate) fn set_property(path: &str, value: &str) -> Result<(), HostError> {
    // SAFETY: pointers and lengths of two live slices.
    checked(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
}

pub(crate) fn set_effective_context(context: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked(unsafe { proxy_set_effective_context(context) })
}

pub(crate) fn continue_stream(stream: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked(unsafe { proxy_continue_stream(stream) })
}

pub(crate) fn done() -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked(unsafe { proxy_done() })
}

pub(crate) fn send_local_response(
    status: u32,
    details: &str,
    headers: &[u8],
    body: &[u8],
    grpc_status: Option<u8>,
) -> Result<(), HostError> {
    const NO_GRPC_STATUS: i32 = -1;
    // SAFETY: pointers and lengths of three live slices.
    checked(unsafe {
        proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status.map_or(NO_GRPC_STATUS, i32::from),
        )
    })
}

pub(crate) fn define_metric(kind: u32, name: &str) -> Result<u32, HostError> {
    let mut id = 0;
    // SAFETY: one live slice, and a pointer to a live local.
    checked(unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &raw mut id) })?;
    Ok(id)
}

/// A value, and its version for a later change.
pub(crate) fn shared_data(key: &str) -> Result<(Vec<u8>, u32), HostError> {
    let mut version = 0;
    // SAFETY: one live slice, and pointers to live locals.
    let data = received(|data, length| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), data, length, &raw mut version)
    })?;
    Ok((data, version))
}

/// Sets a value if it still has this version; 0 for whatever it has.
pub(crate) fn set_shared_data(key: &str, data: &[u8], version: u32) -> Result<(), HostError> {
    // SAFETY: pointers and lengths of two live slices.
    checked(unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), data.as_ptr(), data.len(), version) })
}

pub(crate) fn register_queue(name: &str) -> Result<u32, HostError> {
    let mut id = 0;
    // SAFETY: one live slice, and a pointer to a live local.
    checked(unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), &raw mut id) })?;
    Ok(id)
}

pub(crate) fn enqueue(id: u32, data: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointer and length of one live slice.
    checked(unsafe { proxy_enqueue_shared_queue(id, data.as_ptr(), data.len()) })
}

pub(crate) fn dequeue(id: u32) -> Result<Vec<u8>, HostError> {
    // SAFETY: the pointers are to live locals of `received`.
    received(|data, length| unsafe { proxy_dequeue_shared_queue(id, data, length) })
}

pub(crate) fn increment(counter: u32, by: i64) -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked(unsafe { proxy_increment_metric(counter, by) })
}
