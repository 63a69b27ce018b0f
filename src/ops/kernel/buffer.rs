//! Memory for tensors and scratch that is used again.
//!
//! A training step frees and asks for the same sizes over and over. The system would take large
//! blocks back each time and clear their pages again: a seventh of a step of SmolLM2-135M. Here a
//! freed buffer waits for the next request of its size. What waits is never more than what was in
//! use before: a request that finds no buffer first gives as much of what waits back to the system.
//!
//! Rows of buffers begin at cache lines where their width allows it, which vector loads like.

use burn::tensor::{DType, Shape};
use burn_flex::{FlexTensor, Layout};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};
use std::alloc::Layout as Memory;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// Smallest buffer that is kept, in elements (64 KiB); smaller ones the system hands out quickly.
const LEAST_KEPT: usize = 16 * 1024;

/// Bytes in a cache line.
const LINE: usize = 64;

/// `f32` values that begin at a cache line. Always initialised: fresh memory is zeros, memory that
/// is used again holds what was there.
pub(crate) struct Buffer {
    /// The first value.
    data: NonNull<f32>,
    len: usize,
    /// Taken out when the buffer goes.
    memory: Option<Block>,
}

// SAFETY: a buffer owns its memory alone.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

/// Memory from the system.
struct Block {
    start: NonNull<u8>,
    /// Values that fit, wherever in the first line they begin.
    capacity: usize,
}

// SAFETY: a block owns its memory alone.
unsafe impl Send for Block {}

impl Block {
    fn layout(capacity: usize) -> Memory {
        let bytes = capacity.checked_mul(size_of::<f32>()).and_then(|n| n.checked_add(LINE));
        // The alignment that zeroed pages come with at no cost.
        let layout = bytes.and_then(|bytes| Memory::from_size_align(bytes, 16).ok());
        layout.unwrap_or_else(|| panic!("a tensor of {capacity} values is beyond all memory"))
    }

    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout is not empty.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Self { start, capacity }
    }

    /// The first cache line in it.
    fn aligned(&self) -> NonNull<f32> {
        let padding = self.start.align_offset(LINE);
        // SAFETY: the block has room for a line beside its capacity.
        unsafe { self.start.add(padding) }.cast()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// Blocks that wait to be used again, the longest waiting first.
struct Waiting(Mutex<Vec<Block>>);

static WAITING: Waiting = Waiting(Mutex::new(vec![]));

impl Waiting {
    fn put(&self, block: Block) {
        if block.capacity >= LEAST_KEPT {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(block);
        }
    }

    /// A block for so many values, of which at most an eighth more than that.
    fn take(&self, len: usize) -> Block {
        if len < LEAST_KEPT {
            return Block::new(len);
        }
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |block: &Block| block.capacity >= len && block.capacity - len <= len / 8;
        let fitting = (0..waiting.len()).rev().filter(|i| fits(&waiting[*i]));
        if let Some(best) = fitting.min_by_key(|i| waiting[*i].capacity) {
            return waiting.remove(best);
        }
        // As much goes back to the system as will be asked of it.
        let mut given = 0;
        let count = waiting.iter().take_while(|block| {
            let more = given < len;
            given += block.capacity;
            more
        });
        let count = count.count();
        let given: Vec<Block> = waiting.drain(..count).collect();
        drop(waiting);
        drop(given);
        Block::new(len)
    }
}

impl Buffer {
    /// A buffer whose values are any numbers.
    pub(crate) fn any(len: usize) -> Self {
        let memory = WAITING.take(len);
        Self { data: memory.aligned(), len, memory: Some(memory) }
    }

    /// A buffer of zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::any(len);
        let all = buffer.shared();
        super::par_blocks(len, 64 * 1024, |block| {
            // SAFETY: the blocks are disjoint.
            unsafe { all.slice(block) }.fill(0.0);
        });
        buffer
    }

    /// A copy.
    pub(crate) fn copy_of(values: &[f32]) -> Self {
        let mut buffer = Self::any(values.len());
        let all = buffer.shared();
        super::par_blocks(values.len(), 64 * 1024, |block| {
            // SAFETY: the blocks are disjoint.
            unsafe { all.slice(block.clone()) }.copy_from_slice(&values[block]);
        });
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
        let bytes = self.len * size_of::<f32>();
        // SAFETY: the controller's memory is `bytes` long and initialised.
        let bytes = unsafe { Bytes::from_controller(Box::new(self), bytes) };
        FlexTensor::new(bytes, layout, DType::F32)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.take().into_iter().for_each(|block| WAITING.put(block));
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the memory has `len` initialised values, and is borrowed with `self`.
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
        LINE
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
    data: *mut f32,
    len: usize,
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

    /// Row-major matrix that starts at `offset` and whose rows are `row_stride` apart.
    ///
    /// # Safety
    /// Nothing else uses the elements while the matrix lives.
    pub(crate) unsafe fn matrix(
        self,
        offset: usize,
        size: [usize; 2],
        row_stride: usize,
    ) -> super::MatrixMut<'a> {
        assert!(offset <= self.len, "matrix outside of the buffer");
        // SAFETY: the offset lies in the buffer, and the caller vouches for the rest.
        unsafe {
            super::MatrixMut::from_raw(
                self.data.add(offset),
                self.len - offset,
                size,
                [row_stride, 1],
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_what_waits_is_bounded() {
        let waiting = Waiting(Mutex::new(vec![]));
        let count = || waiting.0.lock().unwrap().len();
        let first = waiting.take(100_000);
        let place = first.start;
        waiting.put(first);
        // A little smaller: the same block.
        let again = waiting.take(99_000);
        assert_eq!((again.start, again.capacity, count()), (place, 100_000, 0));
        waiting.put(again);
        waiting.put(Block::new(50_000));
        waiting.put(Block::new(60_000));
        // No block is of the size: the one that waited longest goes, and it is enough.
        assert_eq!((waiting.take(80_000).capacity, count()), (80_000, 2));
        // Too small for the size and too large for another.
        assert_eq!((waiting.take(40_000).capacity, count()), (40_000, 1));
        // Small blocks do not wait.
        waiting.put(Block::new(LEAST_KEPT - 1));
        assert_eq!(count(), 1);
    }

    #[test]
    fn buffers_are_initialised_aligned_and_become_tensors() {
        for len in [0, 1, 17, 100_003] {
            let mut buffer = Buffer::zeros(len);
            assert_eq!(buffer.as_ptr().align_offset(LINE), 0);
            assert!(buffer.iter().all(|x| *x == 0.0));
            buffer.fill(7.0);
            drop(Buffer::copy_of(&buffer));
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
