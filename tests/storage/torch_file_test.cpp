// Files of torch.save: those that PyTorch wrote (tests/golden/torch, scripts/golden/torch_files.py), ours, and bad ones.
#include "dalle/storage/torch_file.h"

#include <gmock/gmock.h>

#include "dalle/storage/zip_archive.h"
#include "storage/every_type.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

using ::testing::HasSubstr;
using namespace std::string_literals;

fs::path golden(const std::string& name) { return fs::path(DALLE_SOURCE_DIR) / "tests/golden/torch" / name; }

std::vector<std::string> names_of(const TorchFile& file) {
  std::vector<std::string> names;
  for (const auto& entry : file.tensors) names.push_back(entry.name);
  return names;
}

const Tensor& tensor_of(const TorchFile& file, const std::string& name) {
  const Tensor* tensor = find_tensor(file.tensors, name);
  if (tensor == nullptr) throw std::runtime_error("no tensor " + name);
  return *tensor;
}

// Pieces of a pickle, so that a test can bend one of them.
std::string integer(int64_t value) {
  return "\x8a\x08"s + std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
std::string text(const std::string& value) {
  const auto size = static_cast<uint32_t>(value.size());
  return "X" + std::string(reinterpret_cast<const char*>(&size), 4) + value;
}
std::string integers(const std::vector<int64_t>& values) {
  std::string tuple = "(";
  for (const int64_t value : values) tuple += integer(value);
  return tuple + "t";
}

struct PickledTensor {
  std::string function = "torch._utils\n_rebuild_tensor_v2", type = "FloatStorage", key = "0";
  int64_t numel = 6;
  std::vector<int64_t> shape{2, 3}, strides{3, 1};
  int64_t offset = 0;

  std::string pickle() const {
    return "c" + function + "\n((" + text("storage") + "ctorch\n" + type + "\n" + text(key) + text("cpu") +
           integer(numel) + "tQ" + integer(offset) + integers(shape) + integers(strides) + "\x89N" + "tR";
  }
};

std::string dict(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out = "}(";
  for (const auto& [key, value] : entries) out += text(key) + value;
  return out + "u";
}

/// An archive with this pickle and one storage of six floats 0 to 5.
void write_archive(const fs::path& path, const std::string& value, const std::string& byte_order = "little") {
  ZipWriter writer(path);
  writer.add("x/data.pkl", "\x80\x02" + value + ".");
  writer.add("x/byteorder", byte_order);
  const Tensor data = at::arange(6, at::kFloat);
  writer.add("x/data/0", std::span(static_cast<const std::byte*>(data.const_data_ptr()), data.nbytes()));
  writer.commit();
}

std::string refusal(const fs::path& path) {
  return message_of<CheckpointError>([&] { read_torch_file(path); });
}

TEST(TorchFile, ReadsEveryTypeAndViewOfAStateDict) {
  for (const char* name : {"state.pt", "state_protocol4.pt"}) {
    const TorchFile file = read_torch_file(golden(name));
    EXPECT_EQ(file.type, "dict");
    EXPECT_EQ(file.tensors.size(), 17u);
    EXPECT_EQ(file.tensors[0].name, "float32");
    for (const auto& [key, value] : every_type())
      EXPECT_TRUE(testing::bitwise_equal(tensor_of(file, key), value)) << key;
    const Tensor base = at::arange(24, at::kFloat);
    EXPECT_TRUE(testing::bitwise_equal(tensor_of(file, "transposed"), base.view({4, 6}).t()));
    EXPECT_TRUE(testing::bitwise_equal(tensor_of(file, "rows_2_to_4"), base.view({4, 6}).slice(0, 2, 4)));
    EXPECT_TRUE(testing::bitwise_equal(tensor_of(file, "every_third"), base.slice(0, 1, 24, 3)));
    EXPECT_TRUE(testing::bitwise_equal(tensor_of(file, "channels_last"), base.view({1, 2, 3, 4})));
    EXPECT_EQ(tensor_of(file, "base").data_ptr(), tensor_of(file, "transposed").data_ptr()) << "one storage, read once";
  }
}

TEST(TorchFile, AModuleGivesWhatItsStateDictWould) {
  const TorchFile file = read_torch_file(golden("module.pkl"));
  EXPECT_EQ(file.type, "__main__.Everything");
  EXPECT_THAT(names_of(file),
              ::testing::ElementsAre("gain", "steps", "inner.0.weight", "inner.0.bias", "inner.2.weight",
                                     "inner.2.bias", "inner.2.running_mean", "inner.2.running_var",
                                     "inner.2.num_batches_tracked", "tied.weight", "tied.bias"));
  EXPECT_EQ(tensor_of(file, "steps").item<int64_t>(), 7);
  EXPECT_TRUE(testing::bitwise_equal(tensor_of(file, "inner.0.weight"), at::arange(6, at::kFloat).view({3, 2}) + 1));
}

TEST(TorchFile, NestedDictsGiveDottedNamesAndOtherValuesArePassedOver) {
  const TorchFile file = read_torch_file(golden("nested.pt"));
  EXPECT_EQ(file.tensors.size(), 12u);  // eleven of the module and one parameter
  EXPECT_EQ(file.tensors[0].name, "model.gain");
  EXPECT_EQ(file.tensors.back().name, "parameter");
  EXPECT_FALSE(file.tensors.back().tensor.requires_grad());
}

TEST(TorchFile, AFileWithoutChecksumsIsRead) {
  EXPECT_EQ(read_torch_file(golden("no_checksums.pt")).tensors.size(), 5u);
}

TEST(TorchFile, ATorchScriptArchiveGivesItsTensors) {
  const TorchFile file = read_torch_file(golden("torchscript.pt"));
  EXPECT_THAT(file.type, HasSubstr("__torch__."));
  ASSERT_EQ(file.tensors.size(), 2u);
  EXPECT_EQ(find_tensor(file.tensors, "weight")->sizes(), at::IntArrayRef({3, 2}));
  EXPECT_EQ(find_tensor(file.tensors, "bias")->sizes(), at::IntArrayRef({3}));
}

TEST(TorchFile, OtherFormatsAreNamedWithAHint) {
  EXPECT_THAT(refusal(golden("state_legacy.pt")), HasSubstr("older PyTorch"));
  EXPECT_THAT(refusal(golden("state_legacy.pt")), HasSubstr("torch.save it again"));
  EXPECT_THAT(refusal(golden("sparse.pt")), HasSubstr("_rebuild_sparse_tensor"));
  EXPECT_THAT(refusal(fs::path(DALLE_SOURCE_DIR) / "tests/golden/adamw.safetensors"), HasSubstr("FILE.safetensors"));
  EXPECT_THAT(refusal(fs::path(DALLE_SOURCE_DIR) / "tests/golden/cmyk.jpg"), HasSubstr("other bytes"));
  const Scratch scratch("torch-formats");
  EXPECT_THROW(read_torch_file(scratch / "none.pt"), FileError);
  overwrite(scratch / "empty.pt", "");
  EXPECT_THROW(read_torch_file(scratch / "empty.pt"), CheckpointError);
  overwrite(scratch / "old.pt", std::string(257, 'x') + "ustar" + std::string(300, '\0'));
  EXPECT_THAT(refusal(scratch / "old.pt"), HasSubstr("very old PyTorch"));
  ZipWriter other(scratch / "other.zip");
  other.add("a.txt", "hello");
  other.commit();
  EXPECT_THAT(refusal(scratch / "other.zip"), HasSubstr("0 members FOLDER/data.pkl"));
  write_archive(scratch / "big.pt", dict({{"a", PickledTensor{}.pickle()}}), "big");
  EXPECT_THAT(refusal(scratch / "big.pt"), HasSubstr("little-endian"));
  write_archive(scratch / "list.pt", "]" + PickledTensor{}.pickle() + "a");
  EXPECT_THAT(refusal(scratch / "list.pt"), HasSubstr("a list without any"));
}

TEST(TorchFile, SizesThatDoNotFitTheirStorageAreNamed) {
  const Scratch scratch("torch-sizes");
  const auto path = scratch / "x.pt";
  write_archive(path, dict({{"a", PickledTensor{}.pickle()}}));
  EXPECT_TRUE(testing::bitwise_equal(read_torch_file(path).tensors[0].tensor, at::arange(6, at::kFloat).view({2, 3})));
  constexpr int64_t kHuge = int64_t{1} << 62;
  const std::pair<PickledTensor, const char*> cases[] = {
      {{.shape = {2, 4}, .strides = {3, 1}}, "within the 6 elements"},
      {{.offset = 1}, "within the 6 elements"},
      {{.offset = kHuge}, "within the 6 elements"},
      {{.offset = -1}, "an offset"},
      {{.shape = {kHuge, kHuge}, .strides = {kHuge, kHuge}}, "within the 6 elements"},
      {{.shape = {kHuge, 1}, .strides = {0, 1}}, "no more elements"},
      {{.shape = {7}, .strides = {0}}, "no more elements"},
      {{.shape = {0, kHuge, 4}, .strides = {1, 1, 1}}, "within the 6 elements"},
      {{.shape = {0}, .strides = {1}, .offset = 7}, "within the 6 elements"},
      {{.shape = {2, 3}, .strides = {-3, 1}}, "strides"},
      {{.shape = {-2, 3}}, "shape"},
      {{.shape = {2, 3}, .strides = {1}}, "strides"},
      {{.shape = std::vector<int64_t>(17, 1), .strides = std::vector<int64_t>(17, 1)}, "16 dimensions"},
      {{.numel = 7}, "28 bytes of data, got 24"},
      {{.numel = 5}, "20 bytes of data, got 24"},
      {{.numel = kHuge}, "2^64 bytes"},
      {{.numel = -1}, "a storage's type"},
      {{.type = "DoubleStorage"}, "48 bytes of data, got 24"},
      {{.type = "ComplexFloatStorage"}, "'torch.ComplexFloatStorage'"},
      {{.type = "BoolStorage", .numel = 24}, "bytes 0 and 1"},
      {{.key = "1"}, "data/1"},
      {{.key = "../data.pkl"}, "no such member"},
      {{.function = "torch._utils\n_rebuild_qtensor"}, "_rebuild_qtensor"},
      {{.function = "torch._tensor\n_rebuild_from_type_v2"}, "of a class of its own"},
  };
  for (const auto& [bent, says] : cases) {
    write_archive(path, dict({{"the name", bent.pickle()}}));
    EXPECT_THAT(refusal(path), HasSubstr(says));
    EXPECT_THAT(refusal(path), HasSubstr("'the name'"));
  }
  for (const char* broken :
       {"ctorch._utils\n_rebuild_tensor_v2\n)R", "ctorch._utils\n_rebuild_parameter\n)R",
        "ctorch._utils\n_rebuild_parameter\nN\x85R", "ctorch._utils\n_rebuild_tensor_v2\n(NK\x00)))NtR"}) {
    write_archive(path, dict({{"a", broken}}));
    EXPECT_THROW(read_torch_file(path), CheckpointError) << broken;
  }
}

TEST(TorchFile, NamesAreUnique) {
  const Scratch scratch("torch-names");
  const std::string tensor = PickledTensor{}.pickle();
  write_archive(scratch / "x.pt", dict({{"a", dict({{"b", tensor}})}, {"a.b", tensor}}));
  EXPECT_THAT(refusal(scratch / "x.pt"), HasSubstr("each name once"));
}

TEST(TorchFile, ModulesWithinModulesCannotBlowUp) {
  const Scratch scratch("torch-bombs");
  const std::string tensor = PickledTensor{}.pickle();
  std::string doubling = dict({{"t", tensor}}) + "q\x01";  // each dict holds the one before twice
  for (int level = 0; level < 40; ++level) doubling = doubling + "}(" + text("a") + "h\x01" + text("b") + "h\x01uq\x01";
  // The values that the stack still holds are packed into a tuple, and the last dict is brought back on its own.
  write_archive(scratch / "doubling.pt", dict({{"kept", "(" + doubling + "t"}, {"bomb", "h\x01"}}));
  EXPECT_THAT(refusal(scratch / "doubling.pt"), HasSubstr("more"));
  write_archive(scratch / "cycle.pt", "}q\x01(" + text("a") + "h\x01u");
  EXPECT_THAT(refusal(scratch / "cycle.pt"), HasSubstr("64 levels"));
  std::vector<std::pair<std::string, std::string>> many = {{"t0", tensor + "q\x01"}};
  for (int i = 1; i < 17; ++i) many.push_back({str("t", i), "h\x01"});
  write_archive(scratch / "tied.pt", dict({many.begin(), many.end() - 1}));
  EXPECT_EQ(read_torch_file(scratch / "tied.pt").tensors.size(), 16u);
  write_archive(scratch / "shared.pt", dict(many));
  EXPECT_THAT(refusal(scratch / "shared.pt"), HasSubstr("16 times"));
  write_archive(scratch / "long.pt", dict({{std::string(2000, 'n'), tensor}}));
  EXPECT_THAT(refusal(scratch / "long.pt"), HasSubstr("bytes a name"));
}

TEST(TorchFile, EveryDamagedByteIsReadOrRefused) {
  const Scratch scratch("torch-flip");
  const std::string whole = read_file(golden("no_checksums.pt"));  // so that damage reaches the pickle
  size_t read = 0, refused = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int flip : {0x01, 0x04, 0x80, 0xff}) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      overwrite(scratch / "x.pt", damaged);
      try {
        for (const auto& [name, tensor] : read_torch_file(scratch / "x.pt").tensors) {
          EXPECT_LE(tensor.nbytes(), 96u);
          tensor.clone();  // every element can be read
        }
        ++read;
      } catch (const CheckpointError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(read, 1000u) << "flips in tensors, names and padding";
  EXPECT_GT(refused, 2000u);
}

TEST(TorchFile, EveryTruncationIsAnError) {
  const Scratch scratch("torch-cut");
  const std::string whole = read_file(golden("no_checksums.pt"));
  for (size_t length = 0; length < whole.size(); length += 3) {
    overwrite(scratch / "x.pt", whole.substr(0, length));
    EXPECT_THROW(read_torch_file(scratch / "x.pt"), CheckpointError) << length;
  }
}

TEST(TorchFile, AStateDictOfOursIsReadBackBitForBit) {
  const Scratch scratch("torch-write");
  auto tensors = every_type();
  const Tensor kernel = random_tensor(1, {4, 3, 5, 5});
  tensors.push_back({"channels_last", kernel.contiguous(at::MemoryFormat::ChannelsLast)});
  tensors.push_back({"pointwise", random_tensor(2, {4, 3, 1, 1}).contiguous(at::MemoryFormat::ChannelsLast)});
  tensors.push_back({"grad", kernel.clone().set_requires_grad(true)});
  write_torch_state_dict(scratch / "x.pt", tensors);
  const TorchFile file = read_torch_file(scratch / "x.pt");
  expect_same(file.tensors, tensors);
  for (const auto& [name, tensor] : file.tensors) EXPECT_TRUE(tensor.is_contiguous()) << name;
  const ZipReader archive(scratch / "x.pt");
  for (const auto& member : archive.members()) EXPECT_EQ(member.data_offset % 64, 0u) << member.name;
}

TEST(TorchFile, WriterRefusesWhatItCannotKeep) {
  const Scratch scratch("torch-refuse");
  const Tensor x = at::zeros({2});
  const auto path = scratch / "x.pt";
  EXPECT_THROW(write_torch_state_dict(path, {{"a", x}, {"a", x}}), c10::ValueError);
  EXPECT_THROW(write_torch_state_dict(path, {{"a", Tensor()}}), c10::ValueError);
  EXPECT_THROW(write_torch_state_dict(path, {{"a", at::zeros({2}, at::kComplexFloat)}}), c10::ValueError);
  EXPECT_TRUE(fs::is_empty(scratch.path()));
}

}  // namespace
}  // namespace dalle::storage
