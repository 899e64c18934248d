// Tiles of products against sums in whole numbers, which neither bf16 nor f32 rounds.
#include "dalle/layers/tile_product.h"

#include <gtest/gtest.h>

#include <vector>

#include "dalle/core/bf16.h"
#include "dalle/core/device.h"
#include "dalle/layers/bf16_product.h"

namespace dalle::layers::detail {
namespace {

constexpr int64_t kHeights[] = {1, 2, 5, 6, 7, 8, 11, 12, 13, 16, 64};
constexpr int64_t kWidths[] = {16, 32, 48, 64};
constexpr int64_t kDepths[] = {2, 32, 62};
constexpr int64_t kGap = 4;  // beyond a row, in what lies row by row

class TileProduct : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_bf16_products()) GTEST_SKIP() << "no AVX-512 bf16 here, and no use for these";
  }
};

// Whole numbers from -4 to 4.
int64_t number(int64_t i, int64_t j) { return (i * 7 + j * 5 + i * j) % 9 - 4; }
size_t at(int64_t i) { return static_cast<size_t>(i); }

// a[r, k] = number(r, k), b[k, c] = number(k + 3, c), start and bias likewise.
struct Problem {
  Problem(int64_t height, int64_t width, int64_t depth)
      : m(height), n(width), k(depth), a(at(m * (k + kGap))), turned(at(m * k)), b(at(k * n)), start(at(m * n)) {
    const auto bits = [](int64_t x) { return float_to_bf16(static_cast<float>(x)); };
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t r = 0; r < m; ++r) {
        a[at(r * (k + kGap) + i)] = bits(number(r, i));
        turned[at((i / 2 * m + r) * 2 + i % 2)] = bits(number(r, i));
      }
      for (int64_t c = 0; c < n; ++c) b[at((i / 2 * n + c) * 2 + i % 2)] = bits(number(i + 3, c));
    }
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t c = 0; c < n; ++c) start[at(r * n + c)] = static_cast<float>(number(r, c + 11));
    }
    for (int64_t c = 0; c < n; ++c) bias.push_back(static_cast<float>(number(c, 17)));
  }

  float expected(int64_t r, int64_t c, bool has_start, bool has_bias) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += number(r, i) * number(i + 3, c);
    return static_cast<float>(sum) + (has_start ? start[at(r * n + c)] : 0) + (has_bias ? bias[at(c)] : 0);
  }

  int64_t m, n, k;
  std::vector<uint16_t> a, turned, b;
  std::vector<float> start, bias;
};

template <class Check>
void for_problems(const Check& check) {
  for (const int64_t m : kHeights) {
    for (const int64_t n : kWidths) {
      for (const int64_t k : kDepths) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << ", depth " << k);
        check(Problem(m, n, k));
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(TileProduct, OwnTilesAddAnything) {
  for_problems([](const Problem& p) {
    for (const bool has_start : {false, true}) {
      for (const bool has_bias : {false, true}) {
        const int64_t stride = p.n + 16;
        std::vector<float> sums(at(p.m * stride), -1e6F);
        TileAhead ahead;  // changes nothing that can be seen
        if (has_bias) ahead = {{p.a.data(), p.k + kGap, kAheadDepth}, {p.b.data(), kAheadDepth, p.n * kAheadDepth}};
        own_tile_product(p.m, p.n, p.k, {p.a.data(), p.k + kGap}, p.b.data(),
                         {has_start ? p.start.data() : nullptr, p.n, has_bias ? p.bias.data() : nullptr},
                         {sums.data(), stride}, ahead);
        for (int64_t r = 0; r < p.m; ++r) {
          for (int64_t c = 0; c < stride; ++c) {
            ASSERT_EQ(sums[at(r * stride + c)], c < p.n ? p.expected(r, c, has_start, has_bias) : -1e6F)
                << r << " " << c;
          }
        }
      }
    }
  });
}

TEST_F(TileProduct, OwnTilesReadPairsAndRoundToBf16) {
  for_problems([](const Problem& p) {
    std::vector<uint16_t> sums(at(p.m * p.n));
    own_tile_product(p.m, p.n, p.k, {p.turned.data(), /*row=*/2, /*pair=*/2 * p.m}, p.b.data(), {},
                     {sums.data(), p.n, /*is_bf16=*/true});
    for (int64_t r = 0; r < p.m; ++r) {
      for (int64_t c = 0; c < p.n; ++c) {
        ASSERT_EQ(sums[at(r * p.n + c)], float_to_bf16(p.expected(r, c, false, false))) << r << " " << c;
      }
    }
  });
}

TEST_F(TileProduct, BothKindsGiveTheProductOrAddIt) {
  for (const auto kind : {Tiles::kOneDnn, Tiles::kOwn}) {
    const OtherTiles other(kind);
    for_problems([](const Problem& p) {
      if (p.k % 32 != 0) return;  // what callers pass
      std::vector<float> sums = p.start;
      for (const bool adds : {true, false}) {
        tile_product(p.m, p.n, p.k, p.a.data(), p.k + kGap, p.b.data(), sums.data(), p.n, adds);
        for (int64_t r = 0; r < p.m; ++r) {
          for (int64_t c = 0; c < p.n; ++c) {
            ASSERT_EQ(sums[at(r * p.n + c)], p.expected(r, c, adds, false)) << r << " " << c;
          }
        }
      }
      release_tiles();
    });
  }
}

TEST(Tiles, TheProcessorsChoiceComesBack) {
  const Tiles usual = cpu_has_amx() ? Tiles::kOneDnn : Tiles::kOwn;
  EXPECT_EQ(tiles(), usual);
  for (const auto kind : {Tiles::kOneDnn, Tiles::kOwn}) {
    const OtherTiles other(kind);
    EXPECT_EQ(tiles(), kind);
  }
  EXPECT_EQ(tiles(), usual);
}

}  // namespace
}  // namespace dalle::layers::detail
