"""The numbers 0 to 999 in words: English, Indonesian, Thai and Vietnamese."""

ENGLISH_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
ENGLISH_TENS = [
    ".",
    ".",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
]
INDONESIAN_DIGITS = [
    "nol",
    "satu",
    "dua",
    "tiga",
    "empat",
    "lima",
    "enam",
    "tujuh",
    "delapan",
    "sembilan",
]
THAI_DIGITS = ["ศูนย์", "หนึ่ง", "สอง", "สาม", "สี่", "ห้า", "หก", "เจ็ด", "แปด", "เก้า"]
VIETNAMESE_DIGITS = ["không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín"]


def english(number: int) -> str:
    """347 as 'three hundred forty-seven'."""
    hundreds, rest = divmod(number, 100)
    if hundreds:
        head = f"{ENGLISH_SMALL[hundreds]} hundred"
        return f"{head} {english(rest)}" if rest else head
    if rest < 20:
        return ENGLISH_SMALL[rest]
    tens, ones = divmod(rest, 10)
    return f"{ENGLISH_TENS[tens]}-{ENGLISH_SMALL[ones]}" if ones else ENGLISH_TENS[tens]


def indonesian(number: int) -> str:
    """347 as 'tiga ratus empat puluh tujuh'; one hundred, ten and eleven are 'se-' words."""
    hundreds, rest = divmod(number, 100)
    if hundreds:
        head = "seratus" if hundreds == 1 else f"{INDONESIAN_DIGITS[hundreds]} ratus"
        return f"{head} {indonesian(rest)}" if rest else head
    tens, ones = divmod(rest, 10)
    if rest < 10:
        return INDONESIAN_DIGITS[rest]
    if rest < 12:
        return ("sepuluh", "sebelas")[ones]
    if tens == 1:
        return f"{INDONESIAN_DIGITS[ones]} belas"
    head = f"{INDONESIAN_DIGITS[tens]} puluh"
    return f"{head} {INDONESIAN_DIGITS[ones]}" if ones else head


def thai(number: int) -> str:
    """347 as 'สามร้อยสี่สิบเจ็ด'; two tens are 'ยี่สิบ', a final one is 'เอ็ด'."""
    if number < 10:
        return THAI_DIGITS[number]
    hundreds, tens, ones = number // 100, number // 10 % 10, number % 10
    head = f"{THAI_DIGITS[hundreds]}ร้อย" if hundreds else ""
    if tens:
        head += {1: "", 2: "ยี่"}.get(tens, THAI_DIGITS[tens]) + "สิบ"
    return head + {0: "", 1: "เอ็ด"}.get(ones, THAI_DIGITS[ones])


def vietnamese(number: int) -> str:
    """347 as 'ba trăm bốn mươi bảy'; after tens, one is 'mốt' and five is 'lăm'."""
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    if hundreds:
        head = f"{VIETNAMESE_DIGITS[hundreds]} trăm"
        link = "" if tens else "linh "  # 305 is 'ba trăm linh năm'
        return f"{head} {link}{vietnamese(rest)}" if rest else head
    if rest < 10:
        return VIETNAMESE_DIGITS[rest]
    head = "mười" if tens == 1 else f"{VIETNAMESE_DIGITS[tens]} mươi"
    last = "mốt" if ones == 1 and tens > 1 else "lăm" if ones == 5 else VIETNAMESE_DIGITS[ones]
    return f"{head} {last}" if ones else head
