//! Large data for strangers: memory travels as a descriptor over a Unix-domain socket, as in Wayland and PipeWire.
//!
//! ```text
//!  camera ── socket: "here is descriptor 5" ──▶ viewer, viewer, …
//!      └──▶ memfd, 6 MiB, sealed ◀── mmap ──────┘
//! ```
//!
//! Run `cargo run -p shm --example frames camera PATH` and, in any number of other terminals, `cargo run -p shm --example
//! frames viewer PATH`: they share nothing but the socket's path. No name in /dev/shm, so nothing to clean up, and EOF when
//! the other side is gone. The seals promise that nobody changes or shortens the memory any more: only then is a `&[u8]`
//! over it sound, and a SIGBUS impossible. A viewer that is slow misses frames; it never holds up the camera.
//! One of 6 MiB takes 2.5 ms; 0.4 ms through a `SharedMemory` that stays, 12 ms through a queue (`--release`; two CPUs).

#![expect(unsafe_code, reason = "a descriptor that was received, and mmap(2) of what it names")]

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::{log, print, stop_signals, stop_status};
use memmap2::Mmap;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use socket::Stream;

/// 1920 × 1080 pixels of 3 bytes.
const SIZE: usize = 1920 * 1080 * 3;

fn main() -> Result<ExitCode> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match &args[..] {
        [role, path] if role == "camera" => camera(path),
        [role, path] if role == "viewer" => view(path).map(|()| ExitCode::SUCCESS),
        _ => bail!("expected: camera or viewer, and the PATH of a socket"),
    }
}

fn camera(path: &str) -> Result<ExitCode> {
    let stop = stop_signals()?; // from here on Ctrl-C cannot skip the removal of the socket file
    let listener = socket::listen(&format!("unix:{path}"))?;
    log(&format!("waits for viewers at {path}"));
    let (mut viewers, mut number, said) = (Vec::new(), 0u8, Once::new());
    // The pace of a camera; nothing else makes it wait.
    while !is_ready(stop.as_fd(), PollTimeout::from(20u8)) {
        if is_ready(listener.as_fd(), PollTimeout::ZERO) {
            match listener.accept().and_then(|new| new.set_nonblocking(true).map(|()| new)) {
                Ok(viewer) => viewers.push(viewer),
                Err(error) => said.call_once(|| log(&format!("cannot serve a viewer: {error}"))),
            }
        }
        number = number.wrapping_add(1);
        let Some(frame) = seal(&vec![number; SIZE])? else { continue };
        // One frame for each byte that a viewer has sent: so none piles up before one that is slow.
        viewers.retain(|mut viewer: &Stream| match viewer.read(&mut [0]) {
            Ok(0) => false,
            Ok(_) => send(viewer, &frame).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
    }
    stop_status(&stop) // all is dropped here, and so closed and removed
}

fn is_ready(fd: BorrowedFd, timeout: PollTimeout) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
}

/// What a viewer relies on.
const SEALS: SealFlag = SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_SHRINK);

/// Memory without a name, with a frame that nobody changes any more.
fn seal(frame: &[u8]) -> Result<Option<File>> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("frame", flags).context("memfd_create")?);
    file.write_all(frame).context("write a frame")?; // the only copy
    match fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)) {
        Err(Errno::EBUSY) => Ok(None), // the kernel is at one of its pages, to move it, say: skip this frame
        sealed => sealed.context("seal a frame").map(|_| Some(file)),
    }
}

fn send(viewer: &Stream, frame: &File) -> nix::Result<usize> {
    let descriptor = [frame.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptor)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(viewer.as_raw_fd(), &[IoSlice::new(b"!")], &rights, flags, None)
}

fn view(path: &str) -> Result<()> {
    let camera = socket::connect(&format!("unix:{path}"), Some(Duration::from_secs(10)))?;
    loop {
        let _ = (&camera).write_all(b"?"); // to a camera that is gone: the EOF is seen below
        let Some(frame) = receive(&camera)? else {
            return print("the camera is gone\n");
        };
        match writeln!(io::stdout(), "{} bytes of {}", frame.len(), frame[0]) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("write stdout")?,
        }
    }
}

/// The next frame, or `None` at EOF. Refuses what is not sealed, or of another size, and a message without a descriptor.
fn receive(camera: &Stream) -> Result<Option<Mmap>> {
    let (mut byte, mut space) = ([0], nix::cmsg_space!([i32; 1]));
    let (mut bytes, flags) = ([IoSliceMut::new(&mut byte)], MsgFlags::MSG_CMSG_CLOEXEC);
    let message = match recvmsg::<()>(camera.as_raw_fd(), &mut bytes, Some(&mut space), flags) {
        Err(Errno::ECONNRESET) => return Ok(None), // it closed before it had read that we ask
        message => message.context("recvmsg")?,
    };
    let mut files = Vec::new();
    for control in message.cmsgs().context("more descriptors than one")? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made these descriptors, for us alone. Not covered: nothing.
            files.extend(
                descriptors.into_iter().map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) })),
            );
        }
    }
    let [file] = &files[..] else {
        ensure!(message.bytes == 0, "a message with {} descriptors", files.len());
        return Ok(None);
    };
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).unwrap_or(0);
    let is_sealed = SealFlag::from_bits_retain(seals).contains(SEALS);
    ensure!(is_sealed, "a frame is not sealed: it could change");
    let size = file.metadata()?.len();
    ensure!(size == SIZE as u64, "a frame of {size} bytes, not {SIZE}");
    // SAFETY: it is sealed, so it can neither change nor shrink as long as it is mapped. Not covered: nothing.
    Ok(Some(unsafe { Mmap::map(file) }.context("mmap")?))
}
