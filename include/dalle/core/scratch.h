// Memory for intermediate results of loops over numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace dalle {

/// Of a cache line and of the widest registers: reads that straddle two lines cost twice.
inline constexpr std::align_val_t kScratchAlignment{64};

struct ScratchDeleter {
  void operator()(void* memory) const { ::operator delete(memory, kScratchAlignment); }
};

/// Uninitialised numbers that begin at a cache line.
template <class T>
requires std::is_trivial_v<T>
using Scratch = std::unique_ptr<T[], ScratchDeleter>;

template <class T>
Scratch<T> scratch(int64_t size) {
  return Scratch<T>(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), kScratchAlignment)));
}

}  // namespace dalle
