//! Classifies one image with a network that build.rs compiled.

use std::os::raw::{c_int, c_uint, c_void};
use std::ptr::null_mut;

/// What digits.h declares, as far as it is needed here.
#[repr(C)]
struct Context {
    reserved: [*mut c_void; 16],
}

extern "C" {
    fn digits_init_checked(ctx: *mut Context, ram: *mut c_void, ram_bytes: usize, interface: c_uint) -> c_int;
    fn digits_run(
        ctx: *const Context,
        inputs: *const *const c_void,
        outputs: *const *mut c_void,
        workspace: *mut c_void,
    ) -> c_int;
    fn digits_deinit(ctx: *mut Context) -> c_int;
}

/// `text` as a number, when the program is compiled.
const fn number(text: &str) -> usize {
    let (bytes, mut i, mut n) = (text.as_bytes(), 0, 0);
    while i < bytes.len() {
        n = 10 * n + (bytes[i] - b'0') as usize;
        i += 1;
    }
    n
}

const WORKSPACE_BYTES: usize = number(env!("DIGITS_WORKSPACE_BYTES"));
const INTERFACE: c_uint = number(env!("DIGITS_INTERFACE")) as c_uint;

#[repr(C, align(64))]
struct Workspace([u8; WORKSPACE_BYTES]);

/// The network with the memory it works in.
struct Digits {
    ctx: Context,
    workspace: Box<Workspace>,
}

impl Digits {
    fn new() -> Result<Self, c_int> {
        let mut net =
            Digits { ctx: Context { reserved: [null_mut(); 16] }, workspace: Box::new(Workspace([0; WORKSPACE_BYTES])) };
        // SAFETY: the context is of the size that the header gives, and this network needs no RAM besides.
        match unsafe { digits_init_checked(&mut net.ctx, null_mut(), 0, INTERFACE) } {
            0 => Ok(net),
            code => Err(code),
        }
    }

    fn run(&mut self, image: &[f32; 64]) -> Result<[f32; 10], c_int> {
        let mut scores = [0.0f32; 10];
        let inputs = [image.as_ptr().cast::<c_void>()];
        let outputs = [scores.as_mut_ptr().cast::<c_void>()];
        let workspace = (&mut *self.workspace as *mut Workspace).cast();
        // SAFETY: arrays and workspace have the sizes and alignments of the header; nothing else uses them now.
        match unsafe { digits_run(&self.ctx, inputs.as_ptr(), outputs.as_ptr(), workspace) } {
            0 => Ok(scores),
            code => Err(code),
        }
    }
}

impl Drop for Digits {
    fn drop(&mut self) {
        // SAFETY: initialised by new().
        unsafe { digits_deinit(&mut self.ctx) };
    }
}

/// An image of the evaluation data: the digit 5. Grey values 0 to 16.
#[rustfmt::skip]
const SAMPLE: [u8; 64] = [
    0, 1, 13, 16, 16, 16, 12, 1,
    0, 6, 16, 14, 12, 11, 5, 0,
    0, 2, 15, 15, 5, 0, 0, 0,
    0, 0, 8, 14, 15, 1, 0, 0,
    0, 0, 0, 3, 16, 6, 0, 0,
    0, 0, 0, 3, 16, 5, 0, 0,
    0, 0, 7, 10, 16, 4, 0, 0,
    0, 0, 15, 16, 10, 0, 0, 0,
];

fn main() {
    let image = SAMPLE.map(|grey| f32::from(grey) / 16.0);
    let mut net = Digits::new().expect("init");
    let scores = net.run(&image).expect("run");
    let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
    println!("class {best}");
    assert_eq!(best, 5);
}
