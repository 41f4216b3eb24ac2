// Working memory of ops: one block a thread, kept between calls so that a step allocates nothing.
#pragma once

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

namespace polaron::cpu {

class ThreadScratch {
 public:
  // Called outside parallel regions, before for_thread: at least `floats` for each of `threads`. Contents are lost
  // when a block grows.
  void reserve(int threads, std::size_t floats) {
    blocks_.resize(std::max(blocks_.size(), static_cast<std::size_t>(threads)));
    for (Block& block : blocks_) {
      if (block.size >= floats) continue;
      block.data.reset();
      block.size = 0;
      block.data = allocate(floats);
      block.size = floats;
    }
  }
  // Uninitialised, on a cache line boundary.
  float* for_thread(int thread) { return blocks_[static_cast<std::size_t>(thread)].data.get(); }

 private:
  struct Release {
    std::align_val_t alignment;
    void operator()(float* data) const { ::operator delete(data, alignment); }
  };
  using Memory = std::unique_ptr<float, Release>;
  struct Block {
    Memory data{nullptr, Release{kLine}};
    std::size_t size = 0;
  };

  // Large blocks on huge pages: scattered small ones collide in a second-level cache that the block nearly fills.
  static Memory allocate(std::size_t floats) {
    const std::size_t bytes = floats * sizeof(float);
    if (bytes < kHugePage / 4) return {static_cast<float*>(::operator new(bytes, kLine)), Release{kLine}};
    constexpr std::align_val_t kAlignment{kHugePage};
    const std::size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    Memory memory(static_cast<float*>(::operator new(size, kAlignment)), Release{kAlignment});
    madvise(memory.get(), size, MADV_HUGEPAGE);  // only a hint: failure leaves small pages
    return memory;
  }

  static constexpr std::align_val_t kLine{64};
  static constexpr std::size_t kHugePage = std::size_t{2} << 20U;
  std::vector<Block> blocks_;
};

// `count` floats rounded up to whole cache lines, for cutting a block into aligned pieces.
inline std::size_t aligned_floats(std::int64_t count) { return (static_cast<std::size_t>(count) + 15U) / 16U * 16U; }

}  // namespace polaron::cpu
