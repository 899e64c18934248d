// Any number of different captions in a dozen languages, made from word lists: for tests that need more captions, and
// other scripts, than data/emoji has.
#pragma once

#include <array>
#include <string>
#include <unordered_set>
#include <vector>

#include "dalle/core/random.h"
#include "dalle/text/pretokenize.h"

namespace dalle::testing {

struct Language {
  const char* name;
  const char* space;  // between words
  std::array<const char*, 8> adjectives, nouns, places;
};

inline const std::vector<Language>& languages() {
  static const std::vector<Language> all{
      {"English",
       " ",
       {"a small", "a bright red", "an old wooden", "a sleeping", "the tallest", "a hand-drawn", "a wet", "someone's"},
       {"fox", "lighthouse", "bicycle", "avocado armchair", "grandmother", "snowman", "teapot", "hedgehog"},
       {"in the rain", "on a mountain", "beside the river", "at night", "under an umbrella", "in Tokyo", "on Mars",
        "made of glass"}},
      {"German",
       " ",
       {"ein kleiner", "der größte", "ein süßer", "das rötliche", "ein uralter", "mein", "ein gestreifter", "kein"},
       {"Fuchs", "Leuchtturm", "Fahrradständer", "Igel", "Schneemann", "Käsekuchen", "Straßenmusiker", "Ölberg"},
       {"im Regen", "auf dem Berg", "neben dem Fluss", "bei Nacht", "unterm Regenschirm", "in München", "aus Glas",
        "vor der Tür"}},
      {"French",
       " ",
       {"un petit", "le plus grand", "une vieille", "l'étrange", "un très joli", "mon", "une drôle de", "ce"},
       {"renard", "phare", "vélo", "théière", "bonhomme de neige", "hérisson", "grand-mère", "œuf"},
       {"sous la pluie", "à la montagne", "près du fleuve", "la nuit", "en été", "à Orléans", "en verre", "où ça ?"}},
      {"Spanish",
       " ",
       {"un pequeño", "el más alto", "una vieja", "el niño y", "un simpático", "mi", "aquel", "otro"},
       {"zorro", "faro", "bicicleta", "tetera", "muñeco de nieve", "erizo", "cigüeña", "pingüino"},
       {"bajo la lluvia", "en la montaña", "junto al río", "de noche", "mañana", "en España", "de cristal", "¡aquí!"}},
      {"Russian",
       " ",
       {"маленький", "Самый высокий", "старый", "ещё один", "красный", "мой", "сонный", "этот"},
       {"лис", "маяк", "велосипед", "чайник", "снеговик", "ёжик", "самовар", "воробей"},
       {"под дождём", "на горе", "у реки", "ночью", "под зонтом", "в Москве", "из стекла", "на снегу"}},
      {"Greek",
       " ",
       {"ένα μικρό", "το ψηλότερο", "μια παλιά", "ο ΚΟΚΚΙΝΟΣ", "ένας ήσυχος", "το δικό μου", "εκείνο", "ΑΛΛΟΣ"},
       {"σπίτι", "φάρος", "ποδήλατο", "τσαγιέρα", "χιονάνθρωπος", "σκαντζόχοιρος", "ΟΔΟΣ", "γάτα"},
       {"στη βροχή", "στο βουνό", "δίπλα στο ποτάμι", "τη νύχτα", "με ομπρέλα", "στην Αθήνα", "από γυαλί", "πάλι"}},
      {"Turkish",
       " ",
       {"küçük bir", "en uzun", "eski", "İstanbul'daki", "kırmızı", "benim", "uykulu", "şu"},
       {"tilki", "deniz feneri", "bisiklet", "çaydanlık", "kardan adam", "kirpi", "IĞDIR", "köpek"},
       {"yağmurda", "dağda", "nehrin yanında", "gece", "şemsiyenin altında", "evde", "camdan", "bugün"}},
      {"Hindi",
       " ",
       {"एक छोटी", "सबसे ऊँचा", "पुराना", "लाल", "मेरा", "सुंदर", "सोता हुआ", "वह"},
       {"लोमड़ी", "प्रकाशस्तंभ", "साइकिल", "चायदानी", "बर्फ़ का आदमी", "हाथी", "मोर", "किताब"},
       {"बारिश में", "पहाड़ पर", "नदी के किनारे", "रात को", "छाते के नीचे", "दिल्ली में", "काँच से बना", "यहाँ"}},
      {"Arabic",
       " ",
       {"صغير", "الأطول", "قديم", "أحمر", "نائم", "جميل", "هذا", "مُضِيء"},
       {"ثعلب", "منارة", "دراجة", "إبريق شاي", "رجل ثلج", "قنفذ", "قطة", "كتاب"},
       {"تحت المطر", "على الجبل", "بجانب النهر", "في الليل", "تحت مظلة", "في القاهرة", "من الزجاج", "هنا"}},
      {"Chinese",
       "",
       {"一只小", "最高的", "一个旧", "红色的", "我的", "睡着的", "漂亮的", "那个"},
       {"狐狸", "灯塔", "自行车", "茶壶", "雪人", "刺猬", "熊猫", "扶手椅"},
       {"在雨中", "在山上", "在河边", "夜里", "在雨伞下", "在北京", "用玻璃做的", "吃竹子。"}},
      {"Japanese",
       "",
       {"小さな", "いちばん高い", "古い", "赤い", "わたしの", "眠っている", "かわいい", "あの"},
       {"キツネ", "灯台", "自転車", "ティーポット", "雪だるま", "ハリネズミ", "猫", "アームチェア"},
       {"、雨の中で", "、山の上に", "、川のそばで", "、夜に", "、傘の下", "、東京にて", "、ガラス製", "「ここ」"}},
      {"Korean",
       " ",
       {"작은", "가장 높은", "오래된", "빨간", "나의", "잠자는", "예쁜", "저"},
       {"여우", "등대", "자전거", "찻주전자", "눈사람", "고슴도치", "고양이", "안락의자"},
       {"비 속에서", "산 위에", "강가에서", "밤에", "우산 아래", "서울에서", "유리로 만든", "여기"}},
      {"Thai",
       "",
       {"ตัวเล็ก", "ที่สูงที่สุด", "เก่า", "สีแดง", "ของฉัน", "กำลังหลับ", "สวย", "นั้น"},
       {"สุนัขจิ้งจอก", "ประภาคาร", "จักรยาน", "กาน้ำชา", "ตุ๊กตาหิมะ", "เม่น", "แมว", "หนังสือ"},
       {"ในสายฝน", "บนภูเขา", "ริมแม่น้ำ", "ตอนกลางคืน", "ใต้ร่ม", "ที่กรุงเทพ", "ทำจากแก้ว", "ที่นี่"}}};
  return all;
}

class MultilingualCaptions {
 public:
  explicit MultilingualCaptions(uint64_t seed) : random_(random_key(seed, Purpose::kShuffle, /*a=*/100)) {}

  /// A phrase of `language`, by chance with a count, an invented word, a second noun grown onto the first, emoji,
  /// punctuation, capitals, or accents taken apart.
  std::string next(const Language& language) {
    const auto pick = [&](const auto& list) {
      return std::string(list[static_cast<size_t>(random_.integer(0, static_cast<int64_t>(list.size()) - 1))]);
    };
    static const std::array<const char*, 8> emoji{"😀",  "👍🏽", "❤️",  "👩‍🚀",
                                                  "🇯🇵", "🦊",     "1️⃣", "\u2603\uFE0F"};
    static const std::array<const char*, 8> marks{"!",  "...",   ", 12:30",  " (1984)",
                                                  "?!", " #art", "; \"ok\"", " – 50%"};
    std::string noun = pick(language.nouns);
    if (chance(0.2)) noun += pick(language.nouns);
    if (chance(0.5)) noun += language.space + invented(noun);
    std::string text = pick(language.adjectives) + language.space + noun + language.space + pick(language.places);
    if (chance(0.3)) text = std::to_string(random_.integer(1, 9999)) + " " + text;
    if (chance(0.3)) text += pick(marks);
    if (chance(0.2)) text += " " + pick(emoji);
    if (chance(0.1)) text = pick(emoji) + " " + text;
    return text;
  }

  /// `count` captions that stay different when normalised, the languages in turn.
  std::vector<std::string> make(size_t count) {
    std::vector<std::string> captions;
    std::unordered_set<std::string> seen;
    for (size_t i = 0; captions.size() < count; ++i) {
      std::string caption = next(languages()[i % languages().size()]);
      if (seen.insert(text::normalize_caption(caption)).second) captions.push_back(std::move(caption));
    }
    return captions;
  }

 private:
  bool chance(double share) { return random_.uniform() < share; }

  /// A word of the letters of `word`, which pieces of all lengths have to be found for.
  std::string invented(const std::string& word) {
    const auto points = text::to_code_points(word);
    std::string out;
    for (int64_t n = random_.integer(2, 9); n > 0; --n) {
      const char32_t point = points[static_cast<size_t>(random_.integer(0, static_cast<int64_t>(points.size()) - 1))];
      if (text::is_letter(point) || (!out.empty() && text::is_mark(point))) out += text::to_utf8(point);
    }
    return out;
  }

  RandomStream random_;
};

}  // namespace dalle::testing
