//! Memory for tensors and scratch that is used again.
//!
//! A training step frees and asks for gigabytes. The system would take large blocks back each time
//! and clear their pages again: a seventh of a step of SmolLM2-135M. Here they come from slabs that
//! are kept: what one phase of a step frees the next one takes, in pieces of any size, so that the
//! slabs hold little more than what is in use at the worst moment.
//!
//! Buffers begin at cache lines, which vector loads like.

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
use std::sync::{Arc, Mutex, PoisonError};

/// Smallest buffer that comes from a slab, in elements (64 KiB); smaller ones the system hands out
/// quickly.
const LEAST_SHARED: usize = 16 * 1024;

/// Bytes in a cache line.
const LINE: usize = 64;

/// Bytes in a slab. Large pages that are never touched cost nothing.
const SLAB: usize = 16 << 20;

/// Bytes from which a buffer has memory of its own, which small ones cannot divide.
const LARGE: usize = SLAB / 2;

/// `f32` values that begin at a cache line. Always initialized: fresh memory is zeros, memory that
/// is used again holds what was there.
pub(crate) struct Buffer {
    data: NonNull<f32>,
    len: usize,
    memory: Origin,
}

/// Where a buffer's memory is from.
enum Origin {
    System,
    Slab,
    /// A block of its own, which waits for the next one when it is freed.
    Large(MmapMut),
    /// A part of a chunk, which goes back to the system with the last of its parts.
    Chunk {
        _chunk: Arc<MmapRaw>,
    },
}

// SAFETY: a buffer owns its memory alone; of a chunk, its part.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

/// The layout of a buffer's memory.
fn layout(len: usize) -> Memory {
    // The system is never asked for nothing.
    let bytes = len.max(1).checked_mul(size_of::<f32>());
    let layout = bytes.and_then(|bytes| Memory::from_size_align(bytes, LINE).ok());
    layout.unwrap_or_else(|| panic!("a tensor of {len} values is beyond all memory"))
}

/// Memory that is kept, and what of it is free. An allocator of constant time that joins free
/// neighbors: TLSF.
struct Slabs(Mutex<Tlsf<'static, u32, u32, 32, 32>>);

static SLABS: Slabs = Slabs(Mutex::new(Tlsf::new()));

impl Slabs {
    /// Initialized memory.
    fn allocate(&self, layout: Memory) -> NonNull<u8> {
        /// What the allocator adds to a piece of a slab that begins at a cache line.
        const HEAD: usize = LINE;
        // The allocator sorts free pieces into classes, 32 to a power of two, and searches from the
        // class that certainly suffices. Sizes at the bounds of classes find a piece of their own
        // size again.
        let whole = layout.size() + HEAD;
        let class = (whole.next_power_of_two() / 64).max(LINE);
        let size = whole.next_multiple_of(class) - HEAD;
        let layout = Memory::from_size_align(size, LINE);
        let layout = layout.unwrap_or_else(|_| panic!("{size} bytes are beyond all memory"));
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(start) = slabs.allocate(layout) {
            return start;
        }
        let slab = Box::leak(Box::new(pages(SLAB)));
        let block = NonNull::from(&mut slab[..]);
        // SAFETY: the block is fresh and belongs to the allocator for ever.
        unsafe { slabs.insert_free_block_ptr(block) };
        slabs.allocate(layout).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
    }

    /// # Safety
    /// Allocated here with this layout, and not used any more.
    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Memory) {
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller vouches for it.
        unsafe { slabs.deallocate(start, layout.align()) };
    }
}

/// Fresh pages, all zeros; large ones where the system has them, which make a step a twentieth
/// faster.
fn pages(bytes: usize) -> MmapMut {
    let map = MmapMut::map_anon(bytes).or_else(|_| {
        // What only waits may be what is missing.
        WAITING.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        MmapMut::map_anon(bytes)
    });
    let map = map.unwrap_or_else(|e| panic!("the system has no {bytes} bytes of memory: {e}"));
    // A wish; nothing depends on it.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    map
}

/// Large blocks that wait to be used again, the longest waiting first.
struct Large(Mutex<Vec<MmapMut>>);

static WAITING: Large = Large(Mutex::new(vec![]));

impl Large {
    /// Initialized memory: a block that waits, if it is at most so many bytes larger. Where none is,
    /// as much as is asked for first goes back to the system.
    fn take(&self, size: usize, most_over: usize) -> MmapMut {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |has: usize| has >= size && has - size <= most_over;
        let fitting = (0..waiting.len()).filter(|i| fits(waiting[*i].len()));
        if let Some(best) = fitting.min_by_key(|i| waiting[*i].len()) {
            return waiting.remove(best);
        }
        let mut given = 0;
        while given < size && !waiting.is_empty() {
            given += waiting.remove(0).len();
        }
        drop(waiting);
        pages(size)
    }

    fn put(&self, block: MmapMut) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(block);
    }
}

impl Buffer {
    /// A buffer whose values are any numbers.
    pub(crate) fn any(len: usize) -> Self {
        // What lives long should not hold much more memory than it needs: a quarter.
        Self::with_most_over(len, len * size_of::<f32>() / 4)
    }

    /// As [`Buffer::any`] for what is freed again soon, which may have any memory that waits.
    pub(crate) fn scratch(len: usize) -> Self {
        Self::with_most_over(len, usize::MAX)
    }

    /// If it is a large one, in a block of at most so many bytes more.
    fn with_most_over(len: usize, most_over: usize) -> Self {
        let layout = layout(len);
        if layout.size() >= LARGE {
            let mut block = WAITING.take(layout.size(), most_over);
            // Pages begin at cache lines, and stay where they are when the block's owner moves.
            let data = NonNull::from(&mut block[..]).cast();
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

    /// A copy that stays long, such as a weight: side by side with others like it in large pages,
    /// which the system gets back when all of them are gone.
    pub(crate) fn lasting_copy(values: &[f32]) -> Self {
        let mut buffer = Self::lasting(values.len());
        buffer.fill_with(values);
        buffer
    }

    /// As [`Buffer::lasting_copy`], of so many values as they come.
    pub(crate) fn lasting_of(len: usize, values: impl Iterator<Item = f32>) -> Self {
        let mut buffer = Self::lasting(len);
        buffer.iter_mut().zip(values).for_each(|(place, value)| *place = value);
        buffer
    }

    fn lasting(len: usize) -> Self {
        /// Bytes in a chunk; what is larger than a quarter has one of its own.
        const CHUNK: usize = 32 << 20;
        /// The chunk that is being filled, and up to where.
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
        // SAFETY: the chunk has as many bytes from there on, and nobody else gets this part of it.
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

    /// A buffer of zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::any(len);
        let all = buffer.shared();
        par_blocks(len, 64 * 1024, |block| {
            // SAFETY: the blocks are disjoint.
            unsafe { all.slice(block) }.fill(0.0);
        });
        buffer
    }

    /// A copy.
    pub(crate) fn copy_of(values: &[f32]) -> Self {
        let mut buffer = Self::any(values.len());
        buffer.fill_with(values);
        buffer
    }

    /// The buffer for several tasks.
    pub(crate) fn shared(&mut self) -> SharedMut<'_> {
        SharedMut::new(self)
    }

    /// A row-major tensor of these values.
    ///
    /// # Panics
    /// If the shape has not as many elements.
    pub(crate) fn into_tensor(self, shape: impl Into<Shape>) -> FlexTensor {
        self.laid_out(Layout::contiguous(shape.into()))
    }

    /// A tensor of these values in this layout, which is dense.
    ///
    /// # Panics
    /// If the layout has not as many elements.
    pub(crate) fn laid_out(self, layout: Layout) -> FlexTensor {
        assert_eq!(layout.shape().num_elements(), self.len, "the shape does not fit the buffer");
        FlexTensor::new(self.into_bytes(), layout, DType::F32)
    }

    /// These bits for a tensor on flex, which takes them as they are.
    ///
    /// # Panics
    /// If the shape has elements of that type for other than all of the bits.
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
            // SAFETY: allocated there with this layout.
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
        // SAFETY: the memory has `len` initialized values, and is borrowed with `self`.
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
        // The most that `Bytes` knows of; the memory is better aligned than that.
        align_of::<u128>()
    }

    fn property(&self) -> AllocationProperty {
        // Not `Native`: others may not free it.
        AllocationProperty::Other
    }

    unsafe fn memory_mut(
        &mut self,
        _policy: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let (data, bytes) = (self.data.as_ptr().cast(), self.len * size_of::<f32>());
        // SAFETY: the memory has that many bytes, and is borrowed mutably with `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(data, bytes) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let (data, bytes) = (self.data.as_ptr().cast(), self.len * size_of::<f32>());
        // SAFETY: the memory has that many bytes, and is borrowed with `self`.
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

// SAFETY: the only ways to the elements are the unsafe methods below, whose callers promise that no
// two tasks reach the same element.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(buffer: &'a mut [f32]) -> Self {
        Self { data: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// # Safety
    /// Nothing else uses the elements while the slice lives.
    pub(crate) unsafe fn slice(self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "slice outside of the buffer");
        // SAFETY: the range lies in the buffer; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_in_pieces_of_any_size() {
        let slabs = Slabs(Mutex::new(Tlsf::new()));
        // All in one slab.
        let large = layout(SLAB / 128);
        let taken: Vec<NonNull<u8>> = (0..20).map(|_| slabs.allocate(large)).collect();
        for start in &taken {
            assert_eq!(start.as_ptr().align_offset(LINE), 0);
            // SAFETY: the memory is this test's, and initialized.
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
        // The same memory in halves, and as a whole.
        let small = layout(SLAB / 256);
        let taken: Vec<NonNull<u8>> = (0..20).map(|_| slabs.allocate(small)).collect();
        assert!(bounds(&taken).0 >= used.0 && bounds(&taken).1 <= used.1);
        for start in taken {
            // SAFETY: as above.
            unsafe { slabs.deallocate(start, small) };
        }
        let whole = slabs.allocate(layout(20 * SLAB / 128)).as_ptr() as usize;
        assert!((used.0..=used.1).contains(&Some(whole)), "free neighbors were not joined");
        // Between two others, a piece is used again for its own size.
        let piece = layout(LEAST_SHARED);
        let [_before, between, _after] = [0; 3].map(|_| slabs.allocate(piece));
        // SAFETY: as above.
        unsafe { slabs.deallocate(between, piece) };
        assert_eq!(slabs.allocate(piece), between);
    }

    #[test]
    fn large_blocks_wait_and_what_waits_is_bounded() {
        let large = Large(Mutex::new(vec![]));
        let count = || large.0.lock().unwrap().len();
        let place = |block: &MmapMut| block.as_ptr() as usize;
        let first = large.take(100_000, 25_000);
        let first_place = place(&first);
        large.put(first);
        // A little smaller: the same block, as for anything that is freed soon.
        let again = large.take(90_000, 25_000);
        assert_eq!((place(&again), count()), (first_place, 0));
        large.put(again);
        let again = large.take(10, usize::MAX);
        assert_eq!((place(&again), count()), (first_place, 0));
        large.put(again);
        let second = large.take(50_000, 12_500);
        // It was too large for that, and went.
        assert_eq!((second.len(), count()), (50_000, 0));
        large.put(second);
        assert_eq!(large.take(200_000, 50_000).len(), 200_000);
        assert_eq!(count(), 0);
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
            // A second handle makes writing copy.
            let mut tensor = tensor;
            tensor.storage_mut::<f32>().fill(1.0);
            assert!(copy.storage::<f32>().iter().enumerate().all(|(i, x)| *x == i as f32));
        }
    }
}
