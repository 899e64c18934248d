// The storages of PyTorch that are read and written, by the names of their classes.
#pragma once

#include <c10/core/ScalarType.h>

namespace dalle::storage {

struct TorchDtype {
  at::ScalarType type;
  const char* storage;  // class in the module torch
};

inline constexpr TorchDtype kTorchDtypes[] = {{at::kFloat, "FloatStorage"}, {at::kDouble, "DoubleStorage"},
                                              {at::kHalf, "HalfStorage"},   {at::kBFloat16, "BFloat16Storage"},
                                              {at::kLong, "LongStorage"},   {at::kInt, "IntStorage"},
                                              {at::kShort, "ShortStorage"}, {at::kChar, "CharStorage"},
                                              {at::kByte, "ByteStorage"},   {at::kBool, "BoolStorage"}};

}  // namespace dalle::storage
