#include <c10/util/Exception.h>

#include "crc32.h"
#include "dalle/core/str.h"
#include "dalle/storage/zip_archive.h"
#include "zip_format.h"

namespace dalle::storage {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint16_t kPaddingExtra = 0x4246;  // "FB", PyTorch's
constexpr uint16_t kVersion = 45;           // of the format: the first with zip64

/// Little-endian numbers of a record, one after the other.
class Record {
 public:
  template <class T>
  Record& add(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Record& add_text(std::string_view text) {
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

uint32_t in_32(uint64_t value) { return value >= zip::kIn64 ? zip::kIn64 : static_cast<uint32_t>(value); }

/// The extra field with those of `values` that do not fit 32 bits; empty where all do.
std::string zip64_extra(std::initializer_list<uint64_t> values) {
  Record numbers, extra;
  for (const uint64_t value : values) {
    if (value >= zip::kIn64) numbers.add(value);
  }
  if (numbers.bytes().empty()) return "";
  return extra.add(zip::kZip64Extra)
      .add(static_cast<uint16_t>(numbers.bytes().size()))
      .add_text(numbers.bytes())
      .bytes();
}

/// Flags to sizes and name length: what a member's own header and its entry in the directory share.
Record& add_common(Record& record, const ZipMember& member) {
  constexpr uint16_t kUtf8Name = 0x0800;
  record.add(kVersion).add(kUtf8Name).add(member.method).add(uint32_t{0});  // no time, so equal content is equal bytes
  record.add(member.crc32).add(in_32(member.stored_size)).add(in_32(member.size));
  return record.add(static_cast<uint16_t>(member.name.size()));
}

std::string local_header(const ZipMember& member) {
  std::string extra = zip64_extra({member.size, member.stored_size});
  const uint64_t unpadded = member.header_offset + zip::kLocalSize + member.name.size() + extra.size() + 4;
  const uint64_t padding = (kAlignment - unpadded % kAlignment) % kAlignment;
  Record pad;
  extra += pad.add(kPaddingExtra).add(static_cast<uint16_t>(padding)).add_text(std::string(padding, 'Z')).bytes();
  Record header;
  add_common(header.add(zip::kLocalSignature), member).add(static_cast<uint16_t>(extra.size()));
  return header.add_text(member.name).add_text(extra).bytes();
}

std::string directory_entry(const ZipMember& member) {
  const std::string extra = zip64_extra({member.size, member.stored_size, member.header_offset});
  Record entry;
  add_common(entry.add(zip::kEntrySignature).add(kVersion), member).add(static_cast<uint16_t>(extra.size()));
  entry.add(uint16_t{0}).add(uint16_t{0}).add(uint16_t{0}).add(uint32_t{0});  // comment, disk, attributes
  return entry.add(in_32(member.header_offset)).add_text(member.name).add_text(extra).bytes();
}

/// The records that close the archive, always with zip64's, as PyTorch writes them.
std::string end_records(uint64_t entries, uint64_t size, uint64_t offset) {
  Record records;
  records.add(zip::kEnd64Signature).add(uint64_t{zip::kEnd64Size - 12}).add(kVersion).add(kVersion);
  records.add(uint32_t{0}).add(uint32_t{0}).add(entries).add(entries).add(size).add(offset);
  records.add(zip::kLocatorSignature).add(uint32_t{0}).add(offset + size).add(uint32_t{1});
  const auto count = static_cast<uint16_t>(std::min<uint64_t>(entries, 0xFFFF));
  records.add(zip::kEndSignature).add(uint16_t{0}).add(uint16_t{0}).add(count).add(count);
  return records.add(in_32(size)).add(in_32(offset)).add(uint16_t{0}).bytes();
}

}  // namespace

void ZipWriter::add(const std::string& name, std::span<const std::byte> bytes) {
  constexpr size_t kMaxName = 1024;
  TORCH_CHECK_VALUE(!name.empty() && name.size() <= kMaxName, "[zip] a member's name has ", name.size(),
                    " characters; 1 to ", kMaxName, " are allowed");
  ZipMember member{.name = name, .header_offset = position_, .stored_size = bytes.size(), .size = bytes.size()};
  member.crc32 = crc32(0, bytes);
  const std::string header = local_header(member);
  member.data_offset = position_ + header.size();
  out_.write(header);
  out_.write(bytes);
  position_ = member.data_offset + bytes.size();
  members_.push_back(std::move(member));
}

void ZipWriter::add(const std::string& name, std::string_view text) { add(name, std::as_bytes(std::span(text))); }

void ZipWriter::commit() {
  std::string directory;
  for (const auto& member : members_) directory += directory_entry(member);
  out_.write(directory);
  out_.write(end_records(members_.size(), directory.size(), position_));
  out_.commit();
}

}  // namespace dalle::storage
