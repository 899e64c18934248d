// Published CLIPs: a TorchScript archive traced from the clip-anytorch package, and its features by that package and by open_clip
// (scripts/golden/clip_packages.py).
#include "dalle/interop/clip_weights.h"

#include <gmock/gmock.h>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/models/load.h"
#include "dalle/storage/safetensors.h"
#include "dalle/storage/torch_file.h"
#include "support/golden.h"
#include "support/temp_directory.h"
#include "support/tensor_matchers.h"
#include "support/thrown_message.h"

namespace dalle::interop {
namespace {

namespace fs = std::filesystem;
using storage::NamedTensor;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::message_of;

const fs::path kWeights = testing::golden_path("clip_packages/openai.pt");
const fs::path kVocabulary = testing::golden_path("clip_bpe/vocabulary.txt.gz");

std::vector<NamedTensor> golden_tensors() { return storage::read_torch_file(kWeights).tensors; }

models::Loaded<models::Clip> imported(const testing::TempDirectory& scratch, bool quick_gelu) {
  const fs::path folder = scratch / (quick_gelu ? "quick" : "gelu");
  storage::save_checkpoint(folder, import_clip({kWeights, kVocabulary, quick_gelu}));
  return models::load_clip(folder, {});
}

/// Largest absolute difference: the bar of unit features is absolute.
double difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(ClipWeights, FeaturesAreThePackages) {
  const testing::TempDirectory scratch("clip-features");
  const testing::Golden golden("clip_packages.safetensors");
  for (const bool quick : {true, false}) {
    const auto clip = imported(scratch, quick);
    const Tensor image = clip.model->encode_image(golden.at("pixels")),
                 text = clip.model->encode_text(golden.at("ids"));
    const std::string same = quick ? "open_clip_quick" : "open_clip_gelu", other = quick ? "open_clip_gelu" : "openai";
    EXPECT_LE(difference(image, golden.at(same + ".image")), 1e-5);
    EXPECT_LE(difference(text, golden.at(same + ".text")), 1e-5);
    EXPECT_GT(difference(image, golden.at(other + ".image")), 1e-3) << "the wrong activation shows";
    EXPECT_GT(difference(text, golden.at(other + ".text")), 1e-3) << "the wrong activation shows";
    if (!quick) continue;
    EXPECT_LE(difference(image, golden.at("openai.image")), 1e-5);
    EXPECT_LE(difference(text, golden.at("openai.text")), 1e-5);
    EXPECT_GT(difference(image, golden.at("without_ln_pre.image")), 1e-3) << "a missing layer norm shows";
    EXPECT_GT(difference(image, golden.at("without_ln_post.image")), 1e-3) << "a missing layer norm shows";
    EXPECT_GT(difference(text, golden.at("without_ln_final.text")), 1e-3) << "a missing layer norm shows";
  }
}

TEST(ClipWeights, SizesAndTokenizerAreReadOffTheFiles) {
  const testing::TempDirectory scratch("clip-sizes");
  const auto clip = imported(scratch, true);
  const auto& config = clip.model->config();
  EXPECT_EQ(config.image_size, 32);
  EXPECT_EQ(config.patch_size, 8);
  EXPECT_EQ(config.vision_dim, 128);
  EXPECT_EQ(config.vision_heads, 2);
  EXPECT_EQ(config.vision_layers, 1);
  EXPECT_EQ(config.text_context, 12);
  EXPECT_EQ(config.text_heads, 1);
  EXPECT_EQ(config.text_layers, 1);
  EXPECT_EQ(config.embed_dim, 16);
  EXPECT_EQ(config.activation, layers::Activation::kQuickGelu);
  EXPECT_EQ(clip.tokenizer, read_file(kVocabulary));
  const auto tokenizer = models::clip_tokenizer(clip);
  EXPECT_EQ(tokenizer.kind(), text::TokenizerKind::kClipBpe);
  EXPECT_EQ(tokenizer.identity(), clip.identities.at("tokenizer"));
  const auto ids = models::clip_text_ids(config, tokenizer.encode("a flag of japan"));
  EXPECT_TRUE(at::equal(at::tensor(ids, at::kLong), testing::Golden("clip_packages.safetensors").at("ids")[0]));
}

TEST(ClipWeights, EveryFormatGivesTheSameModel) {
  const testing::TempDirectory scratch("clip-formats");
  const std::string identity = import_clip({kWeights, kVocabulary}).identities.at("model");
  const auto identity_of = [&](const fs::path& file) {
    return import_clip({file, kVocabulary}).identities.at("model");
  };
  const auto tensors = golden_tensors();
  storage::write_torch_state_dict(scratch / "plain.pt", tensors);
  EXPECT_EQ(identity_of(scratch / "plain.pt"), identity);
  storage::write_safetensors(scratch / "x.safetensors", {tensors, {}});
  EXPECT_EQ(identity_of(scratch / "x.safetensors"), identity);

  auto trained = tensors;  // as open_clip's training saves it, with a logit scale of one dimension
  for (auto& [name, tensor] : trained) {
    if (name == "logit_scale") tensor = tensor.reshape({1});
    name = "state_dict.module." + name;
  }
  trained.push_back({"optimizer.state.exp_avg", at::zeros({3})});
  storage::write_torch_state_dict(scratch / "trained.pt", trained);
  EXPECT_EQ(identity_of(scratch / "trained.pt"), identity);

  auto published = tensors;  // what OpenAI's archives hold beside the weights
  published.push_back({"input_resolution", at::tensor(int64_t{32})});
  published.push_back({"context_length", at::tensor(int64_t{12})});
  published.push_back({"vocab_size", at::tensor(int64_t{634})});
  storage::write_torch_state_dict(scratch / "published.pt", published);
  EXPECT_EQ(identity_of(scratch / "published.pt"), identity);
}

/// What import_clip says of the golden weights after `bend`.
template <class Bend>
std::string refusal(Bend bend) {
  const testing::TempDirectory scratch("clip-bent");
  auto tensors = golden_tensors();
  bend(tensors);
  storage::write_torch_state_dict(scratch / "bent.pt", tensors);
  return message_of<CheckpointError>([&] { import_clip({scratch / "bent.pt", kVocabulary}); });
}

void drop(std::vector<NamedTensor>& tensors, const std::string& name) {
  std::erase_if(tensors, [&](const auto& entry) { return entry.name == name; });
}

TEST(ClipWeights, AMissingLayerNormIsNamed) {
  EXPECT_THAT(refusal([](auto& tensors) { drop(tensors, "visual.ln_pre.weight"); }),
              HasSubstr("visual.ln_pre.weight is missing"));
  EXPECT_THAT(refusal([](auto& tensors) {
                tensors.push_back({"visual.conv1.bias", at::zeros({128})});
              }),
              HasSubstr("visual.conv1.bias is not part of the model"));
}

TEST(ClipWeights, ModelsOfOtherKindsAreNamed) {
  const auto with = [](const char* name) {
    return refusal([&](auto& tensors) { tensors.push_back({name, at::zeros({1})}); });
  };
  EXPECT_THAT(with("visual.layer1.0.conv1.weight"), HasSubstr("ResNet"));
  EXPECT_THAT(with("visual.trunk.blocks.0.norm1.weight"), HasSubstr("timm"));
  EXPECT_THAT(with("logit_bias"), HasSubstr("SigLIP"));
  EXPECT_THAT(with("text_model.embeddings.position_ids"), HasSubstr("Hugging Face"));
  EXPECT_THAT(message_of<CheckpointError>([] {
                import_clip({testing::golden_path("torch/encoder.pkl"), kVocabulary});
              }),
              HasSubstr("visual.conv1.weight"));
}

TEST(ClipWeights, SizesThatNoClipHasAreRefused) {
  const auto with = [](const std::string& name, const Tensor& value) {
    return refusal([&](auto& tensors) {
      for (auto& entry : tensors) {
        if (entry.name == name) entry.tensor = value;
      }
    });
  };
  EXPECT_THAT(with("visual.positional_embedding", at::zeros({16, 128})), HasSubstr("square of patches"));
  EXPECT_THAT(with("visual.conv1.weight", at::zeros({120, 3, 8, 8})), HasSubstr("divisible by 64"));
  EXPECT_THAT(with("visual.conv1.weight", at::zeros({128, 3})), HasSubstr("4 dimensions"));
  EXPECT_THAT(with("text_projection", at::zeros({0, 16})), HasSubstr("text_projection"));
  EXPECT_THAT(with("visual.proj", at::full({128, 16}, NAN)), HasSubstr("finite numbers in visual.proj"));
  EXPECT_THAT(refusal([](auto& tensors) {
                tensors.push_back({"transformer.resblocks.5000.ln_1.weight", at::zeros({1})});
              }),
              HasSubstr("1 to 1000 layers"));
}

TEST(ClipWeights, AVocabularyOfAnotherSizeIsRefused) {
  const testing::TempDirectory scratch("clip-vocabulary");
  write_file(scratch / "short.txt", "#version\na b\n");
  EXPECT_THAT(message_of<CheckpointError>([&] {
                import_clip({kWeights, scratch / "short.txt"});
              }),
              AllOf(HasSubstr("632 pieces"), HasSubstr("513"), HasSubstr("clip_vocabulary.sh")));
  EXPECT_THAT(message_of<CheckpointError>([&] {
                import_clip({kWeights, testing::golden_path("sentencepiece.model")});
              }),
              AllOf(HasSubstr("sentencepiece.model: expected a CLIP vocabulary of"), HasSubstr("another kind of file"),
                    HasSubstr("clip_vocabulary.sh")));
  write_file(scratch / "broken.txt", "#version\na b\nno-merge\n");
  EXPECT_THAT(message_of<CheckpointError>([&] {
                import_clip({kWeights, scratch / "broken.txt"});
              }),
              HasSubstr("broken.txt: "));
}

}  // namespace
}  // namespace dalle::interop
