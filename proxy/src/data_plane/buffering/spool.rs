//! Bytes in, the same bytes out: through memory up to a share, and through a file beyond it.
//!
//! The file is written and read on threads of their own (`spawn_blocking`): mostly that is a copy into the page
//! cache, but a disk that cannot keep up makes the kernel hold the writer, for seconds at times, and all requests of
//! the worker would wait with it. So small pieces are gathered first: a hop to another thread costs more than
//! writing a few bytes.
//!
//! One puts in and one takes out, both on the worker's thread; they may do so at the same time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

use super::room::{Disk, Memory, NoRoom, Room, Use};
use crate::data_plane::admission::Prefix;
use crate::data_plane::exchange::Facts;
use crate::data_plane::upstream::connection::ReadError;
use crate::telemetry::buffers::Side;

/// Blocks in memory grow with the body, so that a small one takes little.
const BLOCK_BYTES_MIN: usize = 4 * 1024;
const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// So much is gathered before it is written; a piece that is larger by itself is written as it is.
const GATHERED_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES_MAX: u64 = 64 * 1024;

/// Both ends of it.
#[derive(Clone)]
pub struct Spool(Rc<RefCell<State>>);

struct State {
    room: Arc<Room>,
    side: Side,
    client: Prefix,
    /// How many bytes of memory this body may take.
    share: u64,
    /// All that was put in.
    length: u64,
    /// Older than anything in `spill`.
    blocks: VecDeque<Block>,
    block_bytes: u64,
    spill: Option<Spill>,
    end: Option<End>,
    /// Waits for something to take.
    taker: Option<Waker>,
    /// Waits until everything is taken.
    putter: Option<Waker>,
}

struct Block {
    bytes: BytesMut,
    /// `None`: on its way through, where there is no room.
    taken: Option<Memory>,
}

/// What goes through the file: its bytes from `read` to `written`, then what is gathered for it.
struct Spill {
    file: Arc<SpillFile>,
    read: u64,
    written: u64,
    gathered: BytesMut,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    _memory: Memory,
}

enum End {
    Whole(Option<HeaderMap>),
    Broken(ReadError),
}

#[derive(Debug)]
pub enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("a buffered body cannot be read back from its file")]
    Io(#[from] io::Error),
    /// It broke off where it came from.
    #[error(transparent)]
    Target(ReadError),
}

impl Spool {
    /// `share`: how many bytes of memory this body may take.
    pub fn new(side: Side, share: u64, facts: &Facts) -> Self {
        let connection = &facts.connection;
        let client = facts.known.borrow().client.unwrap_or(connection.peer);
        Self::of(&connection.worker.room, side, Prefix::of(client), share)
    }

    fn of(room: &Arc<Room>, side: Side, client: Prefix, share: u64) -> Self {
        Self(Rc::new(RefCell::new(State {
            room: Arc::clone(room),
            side,
            client,
            share,
            length: 0,
            blocks: VecDeque::new(),
            block_bytes: 0,
            spill: None,
            end: None,
            taker: None,
            putter: None,
        })))
    }

    /// Puts `data` in, or nothing of it.
    pub async fn put(&self, data: &Bytes) -> Result<(), NoRoom> {
        let write = self.0.borrow_mut().put(data)?;
        if let Some(write) = write {
            let written = write.run().await;
            self.0.borrow_mut().wrote(written)?;
        }
        self.0.borrow_mut().came(data.len());
        Ok(())
    }

    /// Puts `data` in although there is no room: one piece that is on its way through. Wait until all is taken.
    pub fn put_through(&self, data: &[u8]) {
        let mut state = self.0.borrow_mut();
        state.blocks.push_back(Block { bytes: BytesMut::from(data), taken: None });
        state.came(data.len());
    }

    pub fn finish(&self, trailers: Option<HeaderMap>) {
        self.0.borrow_mut().end(End::Whole(trailers));
    }

    pub fn break_off(&self, error: ReadError) {
        self.0.borrow_mut().end(End::Broken(error));
    }

    /// All bytes that were ever put in.
    pub fn length(&self) -> u64 {
        self.0.borrow().length
    }

    /// Whether trailers follow the bytes.
    pub fn has_trailers(&self) -> bool {
        matches!(self.0.borrow().end, Some(End::Whole(Some(_))))
    }

    /// Nothing is left to take, and nothing will come.
    pub fn is_over(&self) -> bool {
        let state = self.0.borrow();
        matches!(state.end, Some(End::Whole(None))) && state.is_empty()
    }

    /// The next piece. Pending while there is none.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Result<Next, SpoolError>> {
        self.0.borrow_mut().poll_take(cx)
    }

    /// Waits until everything is taken that was put in.
    pub async fn emptied(&self) {
        poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            if state.is_empty() {
                return Poll::Ready(());
            }
            state.putter = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl State {
    /// What is to be written before `data` is in.
    fn put(&mut self, data: &Bytes) -> Result<Option<Write>, NoRoom> {
        if self.is_empty() {
            // Whoever takes it out has caught up: the file is not needed any more.
            self.spill = None;
        }
        if self.spill.is_none() && self.keep(data) {
            return Ok(None);
        }
        if self.spill.is_none() {
            self.spill = Some(Spill::begin(&self.room, self.side, self.client)?);
        }
        let Some(spill) = &mut self.spill else { return Err(NoRoom) };
        spill.put(data)
    }

    /// Keeps `data` in memory, if it may.
    fn keep(&mut self, data: &[u8]) -> bool {
        let last = self.blocks.back().filter(|block| block.taken.is_some());
        let spare = last.map_or(0, |block| block.bytes.capacity() - block.bytes.len());
        let (front, rest) = data.split_at(spare.min(data.len()));
        let block = match self.block_for(rest.len()) {
            Ok(block) => block,
            Err(NoRoom) => return false,
        };
        if let Some(last) = self.blocks.back_mut().filter(|_| !front.is_empty()) {
            last.bytes.extend_from_slice(front);
        }
        if let Some(mut block) = block {
            block.bytes.extend_from_slice(rest);
            self.block_bytes += block.bytes();
            self.blocks.push_back(block);
        }
        true
    }

    /// A new block with room for so many bytes; none for none.
    fn block_for(&self, length: usize) -> Result<Option<Block>, NoRoom> {
        if length == 0 {
            return Ok(None);
        }
        let left = usize::try_from(self.share.saturating_sub(self.block_bytes)).unwrap_or(usize::MAX);
        if length > left {
            return Err(NoRoom);
        }
        let usual = usize::try_from(self.block_bytes).unwrap_or(usize::MAX);
        let size = usual.clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX).max(length).min(left);
        let memory = self.room.take_memory(size as u64, Use::Body).ok_or(NoRoom)?;
        Ok(Some(Block { bytes: BytesMut::with_capacity(size), taken: Some(memory) }))
    }

    fn wrote(&mut self, written: Written) -> Result<(), NoRoom> {
        let Some(spill) = &mut self.spill else { return Err(NoRoom) };
        match written {
            Written::All(bytes) => spill.written += bytes,
            Written::Nothing(gathered) => {
                // As if nothing had been put in.
                spill.gathered = BytesMut::from(&gathered[..]);
                return Err(NoRoom);
            }
        }
        Ok(())
    }

    fn came(&mut self, bytes: usize) {
        self.length += bytes as u64;
        wake(&mut self.taker);
    }

    fn end(&mut self, end: End) {
        self.end = Some(end);
        wake(&mut self.taker);
    }

    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.spill.as_ref().is_none_or(Spill::is_empty)
    }

    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next, SpoolError>> {
        if let Some(data) = ready!(self.poll_data(cx))? {
            if self.is_empty() {
                wake(&mut self.putter);
            }
            return Poll::Ready(Ok(Next::Data(data)));
        }
        match self.end.take() {
            Some(End::Whole(trailers)) => {
                self.end = Some(End::Whole(None));
                Poll::Ready(Ok(trailers.map_or(Next::End, Next::Trailers)))
            }
            Some(End::Broken(error)) => Poll::Ready(Err(SpoolError::Target(error))),
            None => {
                self.taker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// `None`: there is none at the moment.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if let Some(block) = self.blocks.pop_front() {
            self.block_bytes -= block.bytes();
            return Poll::Ready(Ok(Some(block.bytes.freeze())));
        }
        let Some(spill) = &mut self.spill else { return Poll::Ready(Ok(None)) };
        spill.poll_data(cx)
    }
}

impl Block {
    fn bytes(&self) -> u64 {
        self.taken.as_ref().map_or(0, Memory::bytes)
    }
}

impl Spill {
    fn begin(room: &Arc<Room>, side: Side, client: Prefix) -> Result<Self, NoRoom> {
        let memory = room.take_memory(GATHERED_BYTES_MAX as u64, Use::Spilling).ok_or(NoRoom)?;
        let disk = room.take_file(side, client).ok_or(NoRoom)?;
        Ok(Self {
            file: Arc::new(SpillFile { file: OnceLock::new(), disk: Some(disk) }),
            read: 0,
            written: 0,
            gathered: BytesMut::new(),
            reading: None,
            _memory: memory,
        })
    }

    fn is_empty(&self) -> bool {
        self.read == self.written && self.gathered.is_empty() && self.reading.is_none()
    }

    fn put(&mut self, data: &Bytes) -> Result<Option<Write>, NoRoom> {
        let length = self.gathered.len() + data.len();
        if length <= GATHERED_BYTES_MAX {
            if self.gathered.capacity() == 0 {
                self.gathered.reserve(GATHERED_BYTES_MAX);
            }
            self.gathered.extend_from_slice(data);
            return Ok(None);
        }
        self.file.disk().ok_or(NoRoom)?.take(length as u64)?;
        let pieces = [std::mem::take(&mut self.gathered).freeze(), data.clone()];
        Ok(Some(Write { file: Arc::clone(&self.file), at: self.written, pieces }))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if self.reading.is_none() && self.read < self.written {
            let (file, at, length) =
                (Arc::clone(&self.file), self.read, READ_BYTES_MAX.min(self.written - self.read));
            self.reading = Some(spawn_blocking(move || file.read(at, length)));
        }
        let Some(reading) = &mut self.reading else {
            let gathered = std::mem::take(&mut self.gathered);
            return Poll::Ready(Ok((!gathered.is_empty()).then(|| gathered.freeze())));
        };
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let data = read.map_err(io::Error::other)??;
        self.read += data.len() as u64;
        Poll::Ready(Ok(Some(data)))
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Made when the first bytes are written.
struct SpillFile {
    file: OnceLock<File>,
    /// `None` while it is dropped.
    disk: Option<Disk>,
}

impl SpillFile {
    fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    fn open(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let disk = self.disk().ok_or(io::ErrorKind::NotFound)?;
        let file = disk.room().dir.file()?;
        Ok(self.file.get_or_init(|| file))
    }

    fn read(&self, at: u64, length: u64) -> io::Result<Bytes> {
        // At most `READ_BYTES_MAX`.
        let mut bytes = BytesMut::zeroed(length as usize);
        self.open()?.read_exact_at(&mut bytes, at)?;
        Ok(bytes.freeze())
    }
}

impl Drop for SpillFile {
    /// With the last handle of a large file the kernel frees all its pages and blocks, which takes its time.
    fn drop(&mut self) {
        let (file, disk) = (self.file.take(), self.disk.take());
        if let (Some(_), Ok(runtime)) = (&file, Handle::try_current()) {
            // Nobody waits for it.
            drop(runtime.spawn_blocking(move || drop((file, disk))));
        }
    }
}

/// Bytes on their way into the file.
struct Write {
    file: Arc<SpillFile>,
    at: u64,
    pieces: [Bytes; 2],
}

enum Written {
    All(u64),
    /// With what had been gathered.
    Nothing(Bytes),
}

impl Write {
    async fn run(self) -> Written {
        let Self { file, at, pieces } = self;
        let [gathered, data] = pieces.clone();
        let length = (gathered.len() + data.len()) as u64;
        let writer = Arc::clone(&file);
        let write = spawn_blocking(move || {
            let to = writer.open()?;
            to.write_all_at(&gathered, at)?;
            to.write_all_at(&data, at + gathered.len() as u64)
        });
        let error = match write.await {
            Ok(Ok(())) => return Written::All(length),
            Ok(Err(error)) => error,
            Err(error) => io::Error::other(error),
        };
        if let Some(disk) = file.disk() {
            disk.room().complain(&error);
            disk.give_back(length);
        }
        let [gathered, _] = pieces;
        Written::Nothing(gathered)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::config::BufferLimits;
    use crate::telemetry::metrics::Metrics;

    const KIB: u64 = 1024;

    fn room(dir: &Path, memory_bytes: u64, disk_bytes: u64) -> (Arc<Room>, Arc<Metrics>) {
        let metrics = Metrics::new(1);
        let directory = dir.to_owned();
        let limits = BufferLimits { directory, directory_is_named: true, memory_bytes, disk_bytes, files: 4 };
        (Room::new(limits, Arc::clone(&metrics)), metrics)
    }

    /// Memory, disk, files.
    fn held(metrics: &Metrics) -> (u64, u64, u64) {
        let buffers = metrics.buffers();
        let [memory, disk, files] = [&buffers.memory_bytes, &buffers.disk_bytes, &buffers.files]
            .map(|held| held.load(Ordering::Relaxed));
        (memory, disk, files)
    }

    /// Files are closed on another thread.
    async fn until_nothing_is_held(metrics: &Metrics) {
        while held(metrics) != (0, 0, 0) {
            tokio::task::yield_now().await;
        }
    }

    fn spool_of(room: &Arc<Room>, side: Side, share: u64) -> Spool {
        Spool::of(room, side, Prefix::of([192, 0, 2, 7].into()), share)
    }

    /// `length` bytes that differ from place to place.
    fn bytes(from: usize, length: usize) -> Bytes {
        (from..from + length).map(|n| (n % 251) as u8).collect()
    }

    async fn take_all(spool: &Spool) -> Vec<u8> {
        let mut all = Vec::new();
        while let Next::Data(data) = poll_fn(|cx| spool.poll_take(cx)).await.unwrap() {
            assert!(!data.is_empty());
            all.extend_from_slice(&data);
        }
        all
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_however_it_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (room, metrics) = room(dir.path(), 1 << 20, 1 << 20);
        for (share, pieces) in [
            (100 * KIB, &[0, 1, 5_000, 90_000][..]),
            (100 * KIB, &[50_000, 50_000, 50_000]),
            (10 * KIB, &[1, 9_000, 2_000, 16_000, 16_384, 1, 100_000, 3]),
            (0, &[1, 2, 3]),
            (0, &[200_000]),
        ] {
            let spool = spool_of(&room, Side::Request, share);
            let mut length = 0;
            for piece in pieces {
                spool.put(&bytes(length, *piece)).await.unwrap();
                length += piece;
            }
            spool.finish(None);
            let (memory, disk, files) = held(&metrics);
            assert!(memory <= share + GATHERED_BYTES_MAX as u64, "{pieces:?}: {memory} of {share}");
            assert_eq!(files > 0, length as u64 > share, "{pieces:?}: {disk} on disk");
            assert_eq!(take_all(&spool).await, bytes(0, length), "{pieces:?}");
            assert!(spool.is_over());
            drop(spool);
            until_nothing_is_held(&metrics).await;
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn one_who_keeps_up_needs_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (room, metrics) = room(dir.path(), 1 << 20, 64 * KIB);
        let spool = spool_of(&room, Side::Response, 8 * KIB);
        let mut seen = Vec::new();
        for n in 0..100 {
            // Every second piece goes through the file.
            for part in 0..2 {
                spool.put(&bytes(n * 16_000 + part * 8_000, 8_000)).await.unwrap();
            }
            while seen.len() < (n + 1) * 16_000 {
                match poll_fn(|cx| spool.poll_take(cx)).await.unwrap() {
                    Next::Data(data) => seen.extend_from_slice(&data),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(seen, bytes(0, 1_600_000));
        drop(spool);
        until_nothing_is_held(&metrics).await;
    }

    #[tokio::test]
    async fn where_there_is_no_room_nothing_is_taken_in() {
        let dir = tempfile::tempdir().unwrap();
        let (room, metrics) = room(dir.path(), 64 * KIB, 60 * KIB);
        let spool = spool_of(&room, Side::Response, 1 << 20);
        spool.put(&bytes(0, 48 * KIB as usize)).await.unwrap();
        assert_eq!(held(&metrics), (48 * KIB, 0, 0), "a quarter is kept for those who spill");
        spool.put(&bytes(49_152, 30_000)).await.unwrap();
        assert_eq!(spool.put(&bytes(79_152, 20_000)).await, Err(NoRoom));
        assert_eq!(held(&metrics), (64 * KIB, 30_000, 1));
        let other = spool_of(&room, Side::Request, 1 << 20);
        assert_eq!(other.put(&bytes(0, 1)).await, Err(NoRoom), "no memory to spill with");

        // Once everything is out, it goes on.
        let mut seen = Vec::new();
        while seen.len() < 79_152 {
            let Next::Data(data) = poll_fn(|cx| spool.poll_take(cx)).await.unwrap() else { panic!() };
            seen.extend_from_slice(&data);
        }
        spool.emptied().await;
        spool.put_through(&bytes(79_152, 20_000));
        spool.finish(None);
        seen.extend(take_all(&spool).await);
        assert_eq!(seen, bytes(0, 99_152));
    }

    #[tokio::test]
    async fn a_disk_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let (room, metrics) = room(&blocked, 1 << 20, 1 << 20);
        let spool = spool_of(&room, Side::Request, 4 * KIB);
        spool.put(&bytes(0, 4_096)).await.unwrap();
        spool.put(&bytes(4_096, 10_000)).await.unwrap();
        for _ in 0..2 {
            assert_eq!(spool.put(&bytes(14_096, 10_000)).await, Err(NoRoom));
            assert_eq!((spool.length(), held(&metrics)), (14_096, (20 * KIB, 0, 1)));
        }
        spool.finish(None);
        assert_eq!(take_all(&spool).await, bytes(0, 14_096));
        drop(spool);
        until_nothing_is_held(&metrics).await;
    }

    /// Puts (a length) and takes (`None`) in any order; what came out, as long as it is the right thing.
    async fn in_any_order(room: &Arc<Room>, share: u64, steps: &[Option<usize>]) -> Result<usize, String> {
        let spool = spool_of(room, Side::Response, share);
        let (mut put, mut seen) = (0, Vec::new());
        for step in steps {
            match step {
                Some(length) => {
                    spool.put(&bytes(put, *length)).await.map_err(|_| "no room".to_owned())?;
                    put += length;
                }
                None if seen.len() < put => {
                    let Ok(Next::Data(data)) = poll_fn(|cx| spool.poll_take(cx)).await else {
                        return Err(format!("{} of {put} bytes", seen.len()));
                    };
                    seen.extend_from_slice(&data);
                }
                None => {}
            }
        }
        spool.finish(None);
        seen.extend(take_all(&spool).await);
        if seen == bytes(0, put) { Ok(put) } else { Err(format!("{} of {put} bytes differ", seen.len())) }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_lost_or_doubled(
            share in 0u64..40_000,
            steps in proptest::collection::vec(proptest::option::of(0usize..40_000), 0..40),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (room, metrics) = room(dir.path(), 1 << 24, 1 << 24);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let length: usize = steps.iter().flatten().sum();
                assert_eq!(in_any_order(&room, share, &steps).await, Ok(length));
                until_nothing_is_held(&metrics).await;
            });
        }
    }

    #[tokio::test]
    async fn trailers_and_breaks_come_last() {
        let dir = tempfile::tempdir().unwrap();
        let (room, _) = room(dir.path(), 1 << 20, 1 << 20);
        for share in [1 << 20, 0] {
            let spool = spool_of(&room, Side::Response, share);
            spool.put(&bytes(0, 40_000)).await.unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", http::HeaderValue::from_static("7"));
            spool.finish(Some(trailers));
            assert!(spool.has_trailers() && !spool.is_over());
            let mut length = 0;
            let seen = loop {
                match poll_fn(|cx| spool.poll_take(cx)).await.unwrap() {
                    Next::Data(data) => length += data.len(),
                    Next::Trailers(trailers) => break trailers,
                    Next::End => panic!("no trailers"),
                }
            };
            assert_eq!((length, seen["x-sum"].as_bytes()), (40_000, &b"7"[..]));
            assert!(matches!(poll_fn(|cx| spool.poll_take(cx)).await, Ok(Next::End)));

            let spool = spool_of(&room, Side::Response, share);
            spool.put(&bytes(0, 5)).await.unwrap();
            spool.break_off(ReadError::Cut);
            assert!(matches!(poll_fn(|cx| spool.poll_take(cx)).await, Ok(Next::Data(_))));
            let broken = poll_fn(|cx| spool.poll_take(cx)).await;
            assert!(matches!(broken, Err(SpoolError::Target(ReadError::Cut))));
        }
    }
}
