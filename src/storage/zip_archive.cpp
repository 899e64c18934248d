#include "dalle/storage/zip_archive.h"

#include <algorithm>
#include <optional>

#include "crc32.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "input_file.h"
#include "printable.h"
#include "zip_format.h"

namespace dalle::storage {
namespace {

using zip::number;

[[noreturn]] void fail_zip(const std::string& place, const std::string& expected, const std::string& got) {
  throw CheckpointError(Problem{.place = place,
                                .expected = expected,
                                .got = got,
                                .hint = "the file is damaged or not a zip archive; get it again"});
}

std::string text_at(const InputFile& input, uint64_t offset, size_t size) {
  std::string text(size, '\0');
  input.read_at(offset, std::as_writable_bytes(std::span(text)));
  return text;
}

std::string member_of(const std::string& place, const ZipMember& member) {
  return str(place, " (member ", printable(member.name), ")");
}

struct Directory {
  uint64_t entries = 0, size = 0, offset = 0;
  uint64_t end = 0;  // where the records that close the archive begin
};

/// The zip64 records right before the end record at `end`, where there are any.
std::optional<Directory> find_directory64(const InputFile& input, uint64_t end, const std::string& place) {
  if (end < zip::kLocatorSize + zip::kEnd64Size) return std::nullopt;
  const uint64_t locator_at = end - zip::kLocatorSize;
  const std::string locator = text_at(input, locator_at, zip::kLocatorSize);
  if (number<uint32_t>(locator, 0) != zip::kLocatorSignature) return std::nullopt;
  const auto record_at = number<uint64_t>(locator, 8);
  if (record_at != locator_at - zip::kEnd64Size) {
    fail_zip(place, str("the zip64 end record at byte ", locator_at - zip::kEnd64Size), str("byte ", record_at));
  }
  const std::string record = text_at(input, record_at, zip::kEnd64Size);
  if (number<uint32_t>(record, 0) != zip::kEnd64Signature || number<uint32_t>(record, 16) != 0 ||
      number<uint32_t>(record, 20) != 0) {
    fail_zip(place, "a zip64 end record of one archive file", "something else");
  }
  return Directory{number<uint64_t>(record, 32), number<uint64_t>(record, 40), number<uint64_t>(record, 48), record_at};
}

Directory find_directory(const InputFile& input, const std::string& place) {
  constexpr uint64_t kMaxComment = 0xFFFF;
  if (input.size() < zip::kEndSize) fail_zip(place, "a zip archive", str("a file of ", input.size(), " bytes"));
  const uint64_t tail_size = std::min<uint64_t>(input.size(), zip::kEndSize + kMaxComment);
  const uint64_t tail_at = input.size() - tail_size;
  const std::string tail = text_at(input, tail_at, tail_size);
  for (size_t at = tail.size() - zip::kEndSize + 1; at-- > 0;) {
    const auto record = std::string_view(tail).substr(at);
    if (number<uint32_t>(record, 0) != zip::kEndSignature) continue;
    if (number<uint16_t>(record, 20) != record.size() - zip::kEndSize) continue;  // its comment ends with the file
    if (number<uint32_t>(record, 4) != 0) fail_zip(place, "an archive of one file", "a part of several");
    const uint64_t end = tail_at + at;
    if (const auto directory = find_directory64(input, end, place)) return *directory;
    return {number<uint16_t>(record, 10), number<uint32_t>(record, 12), number<uint32_t>(record, 16), end};
  }
  fail_zip(place, "a zip archive, with its directory at the end", "no directory (the file may be cut short)");
}

/// Replaces those of an entry's three numbers that its zip64 extra field holds.
void apply_zip64(std::string_view extra, ZipMember& member, const std::string& place) {
  while (extra.size() >= 4) {
    const auto id = number<uint16_t>(extra, 0), size = number<uint16_t>(extra, 2);
    if (size > extra.size() - 4) break;
    std::string_view field = extra.substr(4, size);
    extra.remove_prefix(4 + size);
    if (id != zip::kZip64Extra) continue;
    for (uint64_t* value : {&member.size, &member.stored_size, &member.header_offset}) {
      if (*value != zip::kIn64) continue;
      if (field.size() < 8) fail_zip(place, "the numbers that its zip64 field stands for", "a shorter field");
      *value = number<uint64_t>(field, 0);
      field.remove_prefix(8);
    }
    return;
  }
}

/// Takes one entry off the directory's text.
ZipMember take_entry(std::string_view& directory, const std::string& place) {
  if (directory.size() < zip::kEntrySize || number<uint32_t>(directory, 0) != zip::kEntrySignature) {
    fail_zip(place, "another entry in the directory", "its end or other bytes");
  }
  const size_t name_size = number<uint16_t>(directory, 28), extra_size = number<uint16_t>(directory, 30);
  const size_t whole = zip::kEntrySize + name_size + extra_size + number<uint16_t>(directory, 32);
  if (whole > directory.size()) fail_zip(place, "a whole entry in the directory", "its end");
  ZipMember member{.name = std::string(directory.substr(zip::kEntrySize, name_size)),
                   .header_offset = number<uint32_t>(directory, 42),
                   .stored_size = number<uint32_t>(directory, 20),
                   .size = number<uint32_t>(directory, 24),
                   .crc32 = number<uint32_t>(directory, 16),
                   .method = number<uint16_t>(directory, 10)};
  const std::string member_place = member_of(place, member);
  apply_zip64(directory.substr(zip::kEntrySize + name_size, extra_size), member, member_place);
  constexpr uint16_t kEncrypted = 1;
  if ((number<uint16_t>(directory, 8) & kEncrypted) != 0)
    fail_zip(member_place, "no encryption", "an encrypted member");
  if (member.method == 0 && member.stored_size != member.size) {
    fail_zip(member_place, str(member.size, " stored bytes"), str(member.stored_size));
  }
  directory.remove_prefix(whole);
  return member;
}

/// Finds the member's data behind its own header, all before byte `end`.
void locate_data(const InputFile& input, ZipMember& member, uint64_t end, const std::string& place) {
  const std::string member_place = member_of(place, member);
  if (member.header_offset > end || end - member.header_offset < zip::kLocalSize) {
    fail_zip(member_place, str("a header before byte ", end), str("byte ", member.header_offset));
  }
  const std::string header = text_at(input, member.header_offset, zip::kLocalSize);
  const uint64_t name_size = number<uint16_t>(header, 26), extra_size = number<uint16_t>(header, 28);
  const uint64_t room = end - member.header_offset - zip::kLocalSize;
  if (number<uint32_t>(header, 0) != zip::kLocalSignature || name_size != member.name.size() || name_size > room ||
      text_at(input, member.header_offset + zip::kLocalSize, name_size) != member.name) {
    fail_zip(member_place, str("its header at byte ", member.header_offset), "something else");
  }
  if (name_size + extra_size > room || member.stored_size > room - name_size - extra_size) {
    fail_zip(member_place, str("at most ", room, " bytes there"), str(member.stored_size));
  }
  member.data_offset = member.header_offset + zip::kLocalSize + name_size + extra_size;
}

void check_overlaps(const std::vector<ZipMember>& members, const std::string& place) {
  std::vector<const ZipMember*> order;
  for (const auto& member : members) order.push_back(&member);
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return a->header_offset < b->header_offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->header_offset < order[i - 1]->data_offset + order[i - 1]->stored_size) {
      fail_zip(member_of(place, *order[i]), "bytes of its own",
               str("some that ", printable(order[i - 1]->name), " has too"));
    }
  }
}

}  // namespace

ZipReader::ZipReader(const std::filesystem::path& path)
    : place_(path.string()), input_(std::make_unique<InputFile>(path)) {
  const Directory directory = find_directory(*input_, place_);
  if (directory.offset > directory.end || directory.size != directory.end - directory.offset ||
      directory.entries > directory.size / zip::kEntrySize) {
    fail_zip(place_, str("a directory that ends at byte ", directory.end),
             str(directory.entries, " entries in ", directory.size, " bytes from byte ", directory.offset));
  }
  const std::string text = text_at(*input_, directory.offset, directory.size);
  std::string_view rest = text;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    members_.push_back(take_entry(rest, place_));
    locate_data(*input_, members_.back(), directory.offset, place_);
  }
  if (!rest.empty()) fail_zip(place_, str(directory.entries, " entries in the directory"), "more bytes");
  check_overlaps(members_, place_);
  for (const auto& member : members_) {
    if (!by_name_.emplace(member.name, &member).second) fail_zip(member_of(place_, member), "each name once", "two");
  }
}

ZipReader::~ZipReader() = default;

const ZipMember* ZipReader::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

void ZipReader::read(const ZipMember& member, std::span<std::byte> bytes) const {
  const std::string place = member_of(place_, member);
  if (member.method != 0) {
    throw CheckpointError(
        Problem{.place = place,
                .expected = "a member stored uncompressed, as torch.save writes them",
                .got = "a compressed one",
                .hint = "unpack the archive and pack it again with zip -0, or save it by torch.save"});
  }
  input_->read_at(member.data_offset, bytes);
  const uint32_t checksum = crc32(0, bytes);
  if (member.crc32 != 0 && checksum != member.crc32) {
    fail_zip(place, str("checksum ", std::hex, member.crc32), str(std::hex, checksum));
  }
}

std::string ZipReader::read_text(const ZipMember& member, uint64_t max_size) const {
  if (member.size > max_size) {
    fail_zip(member_of(place_, member), str("at most ", max_size, " bytes"), str(member.size));
  }
  std::string text(member.size, '\0');
  read(member, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace dalle::storage
