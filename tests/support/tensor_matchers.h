// Tensor comparisons for tests: tolerances are relative to the largest value of the expected tensor.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>

#include "dalle/core/str.h"
#include "dalle/core/tensor.h"

namespace dalle::testing {

/// max |a - b| / max |b|, in f64 on the CPU; infinite where a or b is not finite, or where b is 0 everywhere and a is not.
inline double relative_error(const Tensor& actual, const Tensor& expected) {
  const Tensor a = actual.detach().cpu().to(at::kDouble), b = expected.detach().cpu().to(at::kDouble);
  if (a.numel() == 0) return 0;
  if (!at::isfinite(a).all().item<bool>() || !at::isfinite(b).all().item<bool>()) return INFINITY;
  const double difference = (a - b).abs().max().item<double>(), largest = b.abs().max().item<double>();
  return difference == 0 ? 0 : difference / largest;
}

/// Same shape, and every element within `tolerance` of the largest |expected|.
inline ::testing::AssertionResult close_to(const Tensor& actual, const Tensor& expected, double tolerance) {
  if (!actual.defined()) return ::testing::AssertionFailure() << "undefined tensor";
  if (actual.sizes() != expected.sizes()) {
    return ::testing::AssertionFailure() << dalle::str("shape ", actual.sizes(), ", expected ", expected.sizes());
  }
  const double error = relative_error(actual, expected);
  if (error <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << dalle::str("largest difference is ", error, " of the largest value, allowed ",
                                                     tolerance);
}

/// Same shape, type and bits (so -0 differs from 0, and NaN equals itself).
inline ::testing::AssertionResult bitwise_equal(const Tensor& actual, const Tensor& expected) {
  if (actual.sizes() != expected.sizes() || actual.scalar_type() != expected.scalar_type()) {
    return ::testing::AssertionFailure() << dalle::str(actual.sizes(), " ", actual.scalar_type(), ", expected ",
                                                       expected.sizes(), " ", expected.scalar_type());
  }
  const Tensor a = actual.detach().cpu().contiguous(), b = expected.detach().cpu().contiguous();
  if (a.numel() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << dalle::str("bits differ at ", at::ne(a, b).sum().item<int64_t>(), " of ",
                                                     a.numel(), " elements");
}

/// Rows of a [rows, ...] tensor that hold any value other than exactly 0: bool [rows].
inline Tensor nonzero_rows(const Tensor& x) { return x.flatten(1).ne(0).any(1); }

}  // namespace dalle::testing
