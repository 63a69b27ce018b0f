//! Reusable memory for tensors and scratch space.
//!
//! A training step frees and allocates gigabytes. The system would release large blocks each time and clear
//! their pages again, which takes a seventh of a step of SmolLM2-135M. Here they come from slabs that are
//! kept: what one phase of a step frees, the next one uses, in pieces of any size. The slabs therefore hold
//! little more than the peak memory in use. Large buffers have blocks of their own, which are kept too. A block
//! serves sizes from half of what it has been used for up to its room, because the rows of a real dataset make
//! every micro-batch a different size.
//!
//! Buffers are aligned to cache lines, which makes vector loads fast.

use super::blocks::par_blocks;
use burn::tensor::{DType, Shape, TensorData};
use burn_flex::{FlexTensor, Layout};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};
use memmap2::{MmapMut, MmapRaw};
use rlsf::Tlsf;
use std::alloc::Layout as Memory;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// The smallest buffer from a slab, in elements (64 KiB). The system allocator is fast for smaller ones.
const LEAST_SHARED: usize = 16 * 1024;

/// Bytes per cache line.
const LINE: usize = 64;

/// Bytes per slab. Large pages that are never touched cost nothing.
const SLAB: usize = 16 << 20;

/// Buffers of at least this many bytes have their own block, so that small ones cannot fragment it.
const LARGE: usize = SLAB / 2;

/// `f32` values aligned to a cache line. Always initialized: new memory is zeroed, and reused memory has old
/// values.
pub(crate) struct Buffer {
    data: NonNull<f32>,
    len: usize,
    memory: Origin,
}

/// Where a buffer's memory comes from.
enum Origin {
    System,
    Slab,
    /// Its own block, which is kept for reuse when freed.
    Large(Block),
    /// A part of a chunk, which is released when all of its parts are freed.
    Chunk {
        _chunk: Arc<MmapRaw>,
    },
}

// SAFETY: a buffer exclusively owns its memory, or its part of a chunk.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

/// Returns the layout of a buffer's memory.
fn layout(len: usize) -> Memory {
    // Never request zero bytes from the system.
    let bytes = len.max(1).checked_mul(size_of::<f32>());
    let layout = bytes.and_then(|bytes| Memory::from_size_align(bytes, LINE).ok());
    layout.unwrap_or_else(|| panic!("a tensor of {len} values exceeds the address space"))
}

/// Kept memory and its free parts. The allocator (TLSF) takes constant time and joins free neighbors.
struct Slabs(Mutex<Tlsf<'static, u32, u32, 32, 32>>);

static SLABS: Slabs = Slabs(Mutex::new(Tlsf::new()));

impl Slabs {
    /// Allocates initialized memory.
    fn allocate(&self, layout: Memory) -> NonNull<u8> {
        /// The allocator's overhead for a piece of a slab that is aligned to a cache line.
        const HEAD: usize = LINE;
        // The allocator sorts free pieces into classes, 32 per power of two, and searches from the class that
        // is certainly large enough. Sizes rounded to class bounds find a piece of their own size again.
        let whole = layout.size() + HEAD;
        let class = (whole.next_power_of_two() / 64).max(LINE);
        let size = whole.next_multiple_of(class) - HEAD;
        let layout = Memory::from_size_align(size, LINE);
        let layout = layout.unwrap_or_else(|_| panic!("{size} bytes exceed the address space"));
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(start) = slabs.allocate(layout) {
            return start;
        }
        let slab = Box::leak(Box::new(pages(SLAB)));
        let block = NonNull::from(&mut slab[..]);
        // SAFETY: the block is new and belongs to the allocator forever.
        unsafe { slabs.insert_free_block_ptr(block) };
        slabs.allocate(layout).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
    }

    /// # Safety
    /// The memory must have been allocated here with this layout and not be used anymore.
    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Memory) {
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller guarantees this.
        unsafe { slabs.deallocate(start, layout.align()) };
    }
}

/// Allocates zeroed pages; huge pages if the system has them, which make a step 5% faster.
fn pages(bytes: usize) -> MmapMut {
    let map = MmapMut::map_anon(bytes).or_else(|_| {
        // Kept blocks may be the memory that is missing.
        WAITING.0.lock().unwrap_or_else(PoisonError::into_inner).blocks.clear();
        MmapMut::map_anon(bytes)
    });
    let map = map.unwrap_or_else(|e| panic!("the system has no {bytes} bytes of memory: {e}"));
    ask_for_huge_pages(&map, bytes);
    map
}

/// Asks for huge pages within the first `bytes` bytes. Only a hint; nothing depends on it.
fn ask_for_huge_pages(map: &MmapMut, bytes: usize) {
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(memmap2::Advice::HugePage, 0, bytes);
    #[cfg(not(target_os = "linux"))]
    let _ = (map, bytes);
}

/// The memory of a large buffer.
struct Block {
    map: MmapMut,
    /// Bytes at the start that have been used. The system gives a page its memory when it is first used, so
    /// the rest costs address space only.
    used: usize,
}

impl Block {
    /// Returns a block for `size` bytes with room to grow.
    fn new(size: usize) -> Self {
        static IS_FREE: LazyLock<bool> = LazyLock::new(address_space_is_free);
        let room = match *IS_FREE {
            true => size.checked_next_power_of_two().unwrap_or(size),
            false => size,
        };
        let map = if room > size { MmapMut::map_anon(room).ok() } else { None };
        let Some(map) = map else { return Self { map: pages(size), used: size } };
        let mut block = Self { map, used: 0 };
        block.grow(size);
        block
    }

    /// Takes its first `size` bytes into use.
    fn grow(&mut self, size: usize) {
        /// Usual size of a huge page.
        const HUGE: usize = 2 << 20;
        // A huge page across the end would take memory beyond it.
        ask_for_huge_pages(&self.map, size - size % HUGE);
        self.used = size;
    }
}

/// Returns whether pages cost nothing before they are used. Windows counts them, as does Linux if it never
/// overcommits memory or limits the process.
fn address_space_is_free() -> bool {
    if cfg!(windows) || cfg!(not(target_pointer_width = "64")) {
        return false;
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    is_free(&read("/proc/sys/vm/overcommit_memory"), &read("/proc/self/limits"))
}

/// Decides [`address_space_is_free`] from files of `/proc`, which may be empty.
fn is_free(overcommit: &str, limits: &str) -> bool {
    let is_limited = |name: &str| {
        let mut of_name = limits.lines().filter_map(|line| line.strip_prefix(name));
        of_name.any(|limit| !limit.trim_start().starts_with("unlimited"))
    };
    overcommit.trim() != "2" && !["Max address space", "Max data size"].into_iter().any(is_limited)
}

/// Large blocks that are kept for reuse.
struct Large(Mutex<Waiting>);

static WAITING: Large = Large(Mutex::new(Waiting { blocks: vec![], ahead: 0 }));

struct Waiting {
    /// Oldest first.
    blocks: Vec<Block>,
    /// Bytes released beyond what buffers have taken from the system.
    ahead: usize,
}

impl Waiting {
    /// Releases kept blocks for `bytes` that the system is about to give, so that the total does not grow.
    fn release(&mut self, bytes: usize) {
        while self.ahead < bytes && !self.blocks.is_empty() {
            self.ahead += self.blocks.remove(0).used;
        }
        self.ahead = self.ahead.saturating_sub(bytes);
    }
}

impl Large {
    /// Returns initialized memory: a kept block with enough room of which at most `most_used` bytes have been
    /// used, or a new one. For what this takes from the system, other kept blocks are released.
    fn take(&self, size: usize, most_used: usize) -> Block {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |block: &Block| block.map.len() >= size && block.used <= most_used;
        let fitting = (0..waiting.blocks.len()).filter(|i| fits(&waiting.blocks[*i]));
        // The least waste, of used memory or of new pages.
        let best = fitting.min_by_key(|i| waiting.blocks[*i].used.abs_diff(size));
        let Some(best) = best else {
            waiting.release(size);
            drop(waiting);
            return Block::new(size);
        };
        let mut block = waiting.blocks.remove(best);
        if block.used < size {
            waiting.release(size - block.used);
            block.grow(size);
        }
        block
    }

    fn put(&self, block: Block) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).blocks.push(block);
    }
}

impl Buffer {
    /// Returns a buffer with arbitrary values.
    pub(crate) fn any(len: usize) -> Self {
        /// Used memory per byte of a buffer: micro-batches of half the tokens or more share blocks. With 4,
        /// the inputs that checkpointing keeps take blocks of the wide layers, and a step needs half as much
        /// memory again.
        const MOST_USED: usize = 2;
        Self::with_most_used(len, len.saturating_mul(MOST_USED * size_of::<f32>()))
    }

    /// Like [`Buffer::any`], for short-lived buffers, which may use any kept block.
    pub(crate) fn scratch(len: usize) -> Self {
        Self::with_most_used(len, usize::MAX)
    }

    /// Allocates a buffer; a large one uses a block of which at most `most_used` bytes have been used.
    fn with_most_used(len: usize, most_used: usize) -> Self {
        let layout = layout(len);
        if layout.size() >= LARGE {
            let mut block = WAITING.take(layout.size(), most_used);
            // Pages are aligned to cache lines and do not move with the block's owner.
            let data = NonNull::from(&mut block.map[..]).cast();
            return Self { data, len, memory: Origin::Large(block) };
        }
        if len >= LEAST_SHARED {
            let data = SLABS.allocate(layout).cast();
            return Self { data, len, memory: Origin::Slab };
        }
        // SAFETY: the layout is not empty.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        Self { data: start.cast(), len, memory: Origin::System }
    }

    /// Returns a long-lived copy, such as a weight. It shares huge pages with other such copies; they are
    /// released when all of them are freed.
    pub(crate) fn lasting_copy(values: &[f32]) -> Self {
        let mut buffer = Self::lasting(values.len());
        buffer.fill_with(values);
        buffer
    }

    /// Like [`Buffer::lasting_copy`], for `len` values from an iterator.
    pub(crate) fn lasting_of(len: usize, values: impl Iterator<Item = f32>) -> Self {
        let mut buffer = Self::lasting(len);
        buffer.iter_mut().zip(values).for_each(|(place, value)| *place = value);
        buffer
    }

    fn lasting(len: usize) -> Self {
        /// Bytes per chunk. Buffers larger than a quarter of it have their own chunk.
        const CHUNK: usize = 32 << 20;
        /// The chunk that is being filled, and the end of its used part.
        static FILLING: Mutex<Option<(Arc<MmapRaw>, usize)>> = Mutex::new(None);
        let size = layout(len).size().next_multiple_of(LINE);
        let (chunk, start) = if size > CHUNK / 4 {
            (Arc::new(MmapRaw::from(pages(size))), 0)
        } else {
            let mut filling = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
            let (chunk, start) = match filling.take() {
                Some((chunk, start)) if start + size <= CHUNK => (chunk, start),
                _ => (Arc::new(MmapRaw::from(pages(CHUNK))), 0),
            };
            *filling = Some((chunk.clone(), start + size));
            (chunk, start)
        };
        // SAFETY: the chunk has enough bytes from this offset on, and nothing else gets this part of it.
        let data = unsafe { NonNull::new_unchecked(chunk.as_mut_ptr().add(start)) }.cast();
        let memory = Origin::Chunk { _chunk: chunk };
        Self { data, len, memory }
    }

    fn fill_with(&mut self, values: &[f32]) {
        let all = self.shared();
        par_blocks(values.len(), 64 * 1024, |block| {
            // SAFETY: the blocks are disjoint.
            unsafe { all.slice(block.clone()) }.copy_from_slice(&values[block]);
        });
    }

    /// Returns a buffer of zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::any(len);
        let all = buffer.shared();
        par_blocks(len, 64 * 1024, |block| {
            // SAFETY: the blocks are disjoint.
            unsafe { all.slice(block) }.fill(0.0);
        });
        buffer
    }

    /// Returns a copy of values.
    pub(crate) fn copy_of(values: &[f32]) -> Self {
        let mut buffer = Self::any(values.len());
        buffer.fill_with(values);
        buffer
    }

    /// Shares the buffer between tasks.
    pub(crate) fn shared(&mut self) -> SharedMut<'_> {
        SharedMut::new(self)
    }

    /// Converts the values to a row-major tensor.
    ///
    /// # Panics
    /// If the shape has a different number of elements.
    pub(crate) fn into_tensor(self, shape: impl Into<Shape>) -> FlexTensor {
        self.laid_out(Layout::contiguous(shape.into()))
    }

    /// Converts the values to a tensor with a dense layout.
    ///
    /// # Panics
    /// If the layout has a different number of elements.
    pub(crate) fn laid_out(self, layout: Layout) -> FlexTensor {
        assert_eq!(layout.shape().num_elements(), self.len, "the shape does not fit the buffer");
        FlexTensor::new(self.into_bytes(), layout, DType::F32)
    }

    /// Converts the bits to data that a flex tensor uses without copying.
    ///
    /// # Panics
    /// If the elements of the shape, in this type, do not have exactly these bits.
    pub(crate) fn into_data(self, shape: Shape, dtype: DType) -> TensorData {
        TensorData::from_bytes(self.into_bytes(), shape, dtype)
    }

    fn into_bytes(self) -> Bytes {
        let bytes = self.len * size_of::<f32>();
        // SAFETY: the controller's memory is `bytes` long and initialized.
        unsafe { Bytes::from_controller(Box::new(self), bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (start, layout) = (self.data.cast(), layout(self.len));
        match std::mem::replace(&mut self.memory, Origin::System) {
            Origin::Large(block) => WAITING.put(block),
            // SAFETY: allocated by the slabs with this layout.
            Origin::Slab => unsafe { SLABS.deallocate(start, layout) },
            // SAFETY: allocated by the system with this layout.
            Origin::System => unsafe { std::alloc::dealloc(start.as_ptr(), layout) },
            Origin::Chunk { .. } => {}
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the memory has `len` initialized values and is borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        // The largest alignment that `Bytes` supports; the actual alignment is larger.
        align_of::<u128>()
    }

    fn property(&self) -> AllocationProperty {
        // Not `Native`, because others must not free it.
        AllocationProperty::Other
    }

    unsafe fn memory_mut(
        &mut self,
        _policy: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let (data, bytes) = (self.data.as_ptr().cast(), self.len * size_of::<f32>());
        // SAFETY: the memory has that many bytes and is borrowed mutably with `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(data, bytes) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let (data, bytes) = (self.data.as_ptr().cast(), self.len * size_of::<f32>());
        // SAFETY: the memory has that many bytes and is borrowed with `self`.
        Ok(unsafe { std::slice::from_raw_parts(data, bytes) })
    }
}

/// A buffer that several tasks write, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a> {
    pub(super) data: *mut f32,
    pub(super) len: usize,
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: elements are only accessible through the unsafe methods below, whose callers promise that no two
// tasks access the same element.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(buffer: &'a mut [f32]) -> Self {
        Self { data: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// # Safety
    /// Nothing else may use the elements while the slice lives.
    pub(crate) unsafe fn slice(self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "slice outside of the buffer");
        // SAFETY: the range lies within the buffer; the caller guarantees the rest.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_in_pieces_of_any_size() {
        let slabs = Slabs(Mutex::new(Tlsf::new()));
        // All fit in one slab.
        let large = layout(SLAB / 128);
        let taken: Vec<NonNull<u8>> = (0..20).map(|_| slabs.allocate(large)).collect();
        for start in &taken {
            assert_eq!(start.as_ptr().align_offset(LINE), 0);
            // SAFETY: the memory belongs to this test and is initialized.
            assert_eq!(unsafe { start.cast::<f32>().read() }, 0.0);
        }
        let bounds = |taken: &[NonNull<u8>]| {
            let all = taken.iter().map(|start| start.as_ptr() as usize);
            (all.clone().min(), all.max())
        };
        let used = bounds(&taken);
        for start in taken {
            // SAFETY: allocated above.
            unsafe { slabs.deallocate(start, large) };
        }
        // The same memory again in halves, and as a whole.
        let small = layout(SLAB / 256);
        let taken: Vec<NonNull<u8>> = (0..20).map(|_| slabs.allocate(small)).collect();
        assert!(bounds(&taken).0 >= used.0 && bounds(&taken).1 <= used.1);
        for start in taken {
            // SAFETY: as above.
            unsafe { slabs.deallocate(start, small) };
        }
        let whole = slabs.allocate(layout(20 * SLAB / 128)).as_ptr() as usize;
        assert!((used.0..=used.1).contains(&Some(whole)), "free neighbors were not joined");
        // A piece between two others is reused for its own size.
        let piece = layout(LEAST_SHARED);
        let [_before, between, _after] = [0; 3].map(|_| slabs.allocate(piece));
        // SAFETY: as above.
        unsafe { slabs.deallocate(between, piece) };
        assert_eq!(slabs.allocate(piece), between);
    }

    #[test]
    fn large_blocks_serve_similar_sizes_and_what_waits_is_bounded() {
        let large = Large(Mutex::new(Waiting { blocks: vec![], ahead: 0 }));
        let held = || large.0.lock().unwrap().blocks.iter().map(|block| block.used).sum::<usize>();
        let place = |block: &Block| block.map.as_ptr() as usize;
        let first = large.take(100_000, 200_000);
        let first_place = place(&first);
        large.put(first);
        // Smaller requests get the same block; larger ones too, up to its room.
        for (size, used) in [(90_000, 100_000), (50_000, 100_000), (110_000, 110_000)] {
            let again = large.take(size, 2 * size);
            assert_eq!((place(&again), again.used, held()), (first_place, used, 0));
            large.put(again);
        }
        // The closest size wins.
        let (near, far) = (large.take(100_000, usize::MAX), large.take(60_000, 0));
        let near_place = place(&near);
        large.put(far);
        large.put(near);
        let near = large.take(105_000, usize::MAX);
        assert_eq!((place(&near), held()), (near_place, 60_000));
        large.put(near);
        // Long-lived buffers get no block that is much too large, short-lived ones get any.
        let small = large.take(10_000, 20_000);
        // Its memory takes the place of the oldest block.
        assert_eq!((small.used, held()), (10_000, 110_000));
        assert_eq!(large.take(10_000, usize::MAX).used, 110_000);
        large.put(small);
        // What is too large for all blocks takes their place.
        let larger = large.take(200_000, 400_000);
        assert_eq!((larger.used, held()), (200_000, 0));
        large.put(larger);
        // One block makes room for several smaller ones.
        let [next, last] = [20_000, 40_000].map(|size| large.take(size, 0));
        assert_eq!((next.used, last.used, held()), (20_000, 40_000, 0));
    }

    #[test]
    fn blocks_have_room_only_if_address_space_is_free() {
        let limits = |data: &str, space: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max cpu time              unlimited            unlimited            seconds   \n\
                 Max data size             {data:<20} unlimited            bytes     \n\
                 Max address space         {space:<20} unlimited            bytes     \n"
            )
        };
        let unlimited = limits("unlimited", "unlimited");
        assert!(is_free("0\n", &unlimited) && is_free("1\n", &unlimited) && is_free("", ""));
        assert!(!is_free("2\n", &unlimited));
        assert!(!is_free("0\n", &limits("8000000000", "unlimited")));
        assert!(!is_free("0\n", &limits("unlimited", "8000000000")));
    }

    #[test]
    fn micro_batches_of_changing_sizes_take_no_new_memory() {
        let large = Large(Mutex::new(Waiting { blocks: vec![], ahead: 0 }));
        let mut places = std::collections::HashSet::new();
        for (round, size) in
            [300_000, 150_000, 260_000, 200_000, 300_000, 180_000].iter().enumerate()
        {
            let taken: Vec<Block> = (0..5).map(|_| large.take(*size, 2 * size)).collect();
            let new = taken.iter().filter(|block| places.insert(block.map.as_ptr() as usize));
            assert_eq!(new.count(), if round == 0 { 5 } else { 0 });
            taken.into_iter().for_each(|block| large.put(block));
        }
    }

    #[test]
    fn buffers_are_initialized_aligned_and_become_tensors() {
        for len in [0, 1, 17, 100_003, 3_000_001] {
            let mut buffer = Buffer::zeros(len);
            assert_eq!(buffer.as_ptr().align_offset(LINE), 0);
            assert!(buffer.iter().all(|x| *x == 0.0));
            buffer.fill(7.0);
            drop(Buffer::copy_of(&buffer));
            let lasting = [(); 3].map(|()| Buffer::lasting_copy(&buffer));
            for copy in &lasting {
                assert_eq!(copy.as_ptr().align_offset(LINE), 0);
                assert!(copy[..] == buffer[..]);
            }
            drop(lasting);
            let mut zeros = Buffer::zeros(len);
            assert!(zeros.iter().all(|x| *x == 0.0));
            zeros.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            let tensor = zeros.into_tensor([len]);
            let copy = tensor.clone();
            assert!(copy.storage::<f32>().iter().enumerate().all(|(i, x)| *x == i as f32));
            // A second handle makes writing copy the data.
            let mut tensor = tensor;
            tensor.storage_mut::<f32>().fill(1.0);
            assert!(copy.storage::<f32>().iter().enumerate().all(|(i, x)| *x == i as f32));
        }
    }
}
