#include "dalle/data/loader.h"

#include <ATen/ATen.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/data/batch_maker.h"

namespace dalle::data {
namespace {

constexpr int64_t kJudgedFrom = 20;  // samples looked at before the share of bad ones counts
constexpr size_t kNamedBad = 20;

/// Counts bad samples in the order of delivery, so that warnings and failures do not depend on threads.
class BadSampleJudge {
 public:
  explicit BadSampleJudge(double max_share) : max_share_(max_share) {}

  void add(int64_t num_looked_at, const std::vector<BadSample>& bad) {
    num_looked_at_ += num_looked_at;
    num_bad_ += static_cast<int64_t>(bad.size());
    for (const auto& sample : bad) {
      if (named_.size() < kNamedBad && named_.insert(sample.index).second) {
        log_warning(str("unusable picture: ", sample.reason));
      }
    }
    const double share = static_cast<double>(num_bad_) / static_cast<double>(std::max<int64_t>(num_looked_at_, 1));
    if (num_looked_at_ >= kJudgedFrom && share > max_share_) {
      throw DataError(
          Problem{.place = "pictures",
                  .expected = str("at most ", 100 * max_share_, " % unusable (max_bad_share)"),
                  .got = str(num_bad_, " of ", num_looked_at_,
                             bad.empty() ? "" : "; the last: ", bad.empty() ? "" : bad.back().reason),
                  .hint = "the warnings above name the first of them; mend them or raise data.max_bad_share"});
    }
  }

  int64_t num_bad() const { return num_bad_; }
  int64_t num_looked_at() const { return num_looked_at_; }

 private:
  double max_share_;
  int64_t num_bad_ = 0;
  int64_t num_looked_at_ = 0;
  std::set<int64_t> named_;
};

/// What a thread leaves for next(): a batch or the reason why there is none.
struct Delivery {
  MadeBatch made;
  std::exception_ptr error;
};

}  // namespace

struct Loader::State {
  State(const Dataset& dataset, const DataConfig& config, LoaderOptions options)
      : maker(dataset, config, std::move(options)), judge(config.max_bad_share), ahead(config.prefetch_batches) {}

  const BatchMaker maker;
  BadSampleJudge judge;
  const int64_t ahead;
  double seconds_waited = 0;
  std::exception_ptr failure;

  std::mutex mutex;
  std::condition_variable room;     // for threads: a batch was taken
  std::condition_variable arrival;  // for next(): a batch is there
  std::map<int64_t, Delivery> ready;
  int64_t next_to_make = 0;
  int64_t next_to_take = 0;
  bool stopping = false;
  std::vector<std::thread> threads;

  void work() {
    while (true) {
      int64_t number = 0;
      {
        std::unique_lock lock(mutex);
        room.wait(lock, [&] { return stopping || next_to_make < next_to_take + ahead; });
        if (stopping) return;
        number = next_to_make++;
      }
      Delivery delivery;
      try {
        delivery.made = maker.make(number);
      } catch (...) {
        delivery.error = std::current_exception();
      }
      const std::lock_guard lock(mutex);
      ready.emplace(number, std::move(delivery));
      arrival.notify_all();
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    room.notify_all();
    for (auto& thread : threads) thread.join();
    threads.clear();
  }

  Delivery take() {
    const auto start = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex);
    arrival.wait(lock, [&] { return ready.contains(next_to_take); });
    seconds_waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    Delivery delivery = std::move(ready.extract(next_to_take).mapped());
    ++next_to_take;
    room.notify_all();
    return delivery;
  }
};

Loader::Loader(const Dataset& dataset, const DataConfig& config, LoaderOptions options)
    : state_(std::make_unique<State>(dataset, config, std::move(options))) {
  try {
    for (int i = 0; i < config.loader_threads; ++i)
      state_->threads.emplace_back([state = state_.get()] { state->work(); });
  } catch (...) {  // a thread could not be started: the ones that run must end before the state goes
    state_->stop();
    throw;
  }
}

Loader::~Loader() { state_->stop(); }

Batch Loader::next() {
  if (state_->failure) std::rethrow_exception(state_->failure);
  try {
    Delivery delivery = state_->take();
    if (delivery.error) std::rethrow_exception(delivery.error);
    state_->judge.add(delivery.made.num_looked_at, delivery.made.bad);
    return std::move(delivery.made.batch);
  } catch (...) {
    state_->failure = std::current_exception();
    throw;
  }
}

double Loader::seconds_waited() const { return state_->seconds_waited; }
int64_t Loader::bad_samples() const { return state_->judge.num_bad(); }
int64_t Loader::samples_looked_at() const { return state_->judge.num_looked_at(); }

Batch load_range(const Dataset& dataset, const DataConfig& config, int64_t image_size, int64_t first, int64_t count,
                 const EncodeCaption& encode_caption) {
  TransformOptions transform = transform_options(config, image_size);
  transform.augmentation = Augmentation::kNone;
  transform.horizontal_flip = false;
  const Background background = parse_background(config.background);
  BadSampleJudge judge(config.max_bad_share);
  Batch batch;
  std::vector<Tensor> images;
  std::vector<std::vector<int64_t>> ids;
  for (int64_t index = first; index < std::min(first + count, dataset.size()); ++index) {
    try {
      RawSample raw = dataset.read(index);
      images.push_back(transform_picture(decode_picture(raw.picture, background), transform, {}));
      batch.keys.push_back(std::move(raw.key));
      batch.captions.push_back(raw.captions.front());
    } catch (const DataError& error) {
      judge.add(1, {{index, str(dataset.place(index), ": ", error.what())}});
      continue;
    }
    judge.add(1, {});
    batch.positions.push_back(index);
    batch.indices.push_back(index);
    if (encode_caption) ids.push_back(encode_caption(batch.captions.back(), index));
  }
  if (images.empty()) {
    throw DataError(Problem{.place = "pictures",
                            .expected = str("usable samples from ", first, " on"),
                            .got = str("none of ", dataset.size())});
  }
  batch.images = at::stack(images);
  if (encode_caption) batch.caption_ids = stack_ids(ids);
  return batch;
}

}  // namespace dalle::data
