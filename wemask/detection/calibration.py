"""What a model reads while massive tokens are looked for: texts like those that it will meet.

The built-in texts as they are and, where the tokenizer has a chat template, as chats, for tokens of
a template may be massive themselves (`<|im_start|>` in Qwen2.5). B texts, T tokens.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from wemask.errors import DetectionError

LONGEST = 128  # tokens of a text; every text is padded to the longest
CALIBRATION_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Tom has 5 apples. He buys 3 more. How many apples does Tom have now?",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "In 1969, two people walked on the Moon; 600 million watched on television.",
    "Question: What is 12 * 7?\nAnswer: 84.\n",
    "<html><body><p>Hello, world!</p></body></html>",
    "Paris is the capital of France.\nBerlin is the capital of Germany.\n",
    "Once upon a time there was a little girl named Lily. She liked to play outside.",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"]}',
    "E = mc^2, where c is the speed of light: 299792458 m/s.",
    "Dear Sir or Madam,\n\nthank you for your letter of 3 May.\n\nYours faithfully",
    "SELECT id, price FROM orders WHERE price > 100 ORDER BY id;",
    "Summary of the results",
    "- milk\n- eggs\n- 2 loaves of bread\n- 1 kg of sugar\n",
    "Bonjour, je voudrais un cafe, s'il vous plait.",
    "A B C D E F G 1 2 3 4 5 6 7",
    '"I don\'t know," she said, "but it\'s late, isn\'t it?"\n"Then let\'s go," he replied.\n',
    "Write a poem of four lines about winter. Do not use the letter 'e'. Wrap it in *asterisks*.",
    "import os\n\n\nclass Cat:\n\tdef __init__(self, name='Tom'):\n\t\tself.name = name\n",
    "Let $f(x) = \\frac{1}{x}$ for $x \\neq 0$. Find $\\lim_{x \\to \\infty} f(x)$. \\boxed{0}",
    "Die Königin öffnet die Tür. El niño corre por la calle. 今天天气很好。 Привет, мир!",
    "| name | age |\n|------|-----|\n| Ann  | 31  |\n| Bob  | 27  |\n\n* one\n* two\n",
    "https://www.example.com/path?query=1&page=2  user@example.com  +49 (0)30 1234-567",
    "Step 1: She sold 48 clips.\nStep 2: 48/2 = <<48/2=24>>24\nStep 3: 48+24 = 72\n#### 72",
    "WARNING!!! THE SERVER IS DOWN. PLEASE WAIT... (ERROR 503)\n\n\n\nRetrying in 5 seconds",
    "for (int i = 0; i < n; ++i) {\n  sum += a[i];  /* add */\n}\nreturn sum;\n",
    "The mitochondria is the powerhouse of the cell; it makes ATP, which other parts then use.",
    "$ git commit -m 'Fix the bug' && git push origin main\n[main 3f2a1b9] Fix the bug\n",
    "1. Preheat the oven to 180 C.\n2. Mix flour, sugar and butter.\n3. Bake for 25 minutes.\n",
    "What's the capital of Australia? A) Sydney B) Melbourne C) Canberra D) Perth\nAnswer: C",
    "lol ok :) see u @ 8pm 2moro!! <3 #friday",
    "0.1 + 0.2 = 0.30000000000000004; 1,000,000 / 3 = 333,333.33; 7% of $250 is $17.50.",
)
LONGER_TEXTS = (  # for weaker massive tokens, which are rare: in Gemma 3, one in some 500 tokens
    "Maria's bakery sells muffins for $2 each and cakes for $15 each. On Monday she sold "
    "24 muffins "
    "and 3 cakes, and on Tuesday she sold twice as many muffins but only 1 cake. How much "
    "money did "
    "Maria make in total?\nOn Monday she made 24 * 2 = $<<24*2=48>>48 from muffins.\nShe "
    "made 3 * 15 "
    "= $<<3*15=45>>45 from cakes.\nOn Tuesday she sold 24 * 2 = <<24*2=48>>48 "
    "muffins.\nThat's 48 * "
    "2 = $<<48*2=96>>96, and 15 more for the cake.\nSo in total she made 48 + 45 + 96 + 15 "
    "= $204.\n"
    "#### 204",
    "Write a short blog post about a trip to Kyoto. Your answer must contain at least 3 sections, "
    'marked with "Section 1", "Section 2" and so on. Don\'t use any commas. Include the keywords '
    "'temple', 'garden' and 'tea'. Finish your answer with this exact phrase: \"That's all "
    "you need "
    'to know." No other words should follow it. Wrap the title in double angular brackets, such as '
    "<<my trip>>. At least 200 words are expected.",
    "‘You’re late,’ he said. ‘I know,’ she answered; ‘the 7:40 didn’t come, and the next one was "
    "full.’ He looked at the clock on the wall, then at the letter that still lay on the "
    "table. ‘It’s "
    "from the bank,’ he said. ‘They’ve written again.’ She didn’t open it. Outside, the rain had "
    "begun, and somewhere down the street a dog was barking at nothing, or at everything. ‘What’ll "
    "we do?’ he asked. ‘What we’ve always done,’ said Anna. ‘We’ll wait.’",
    'class Stack:\n    """A last-in, first-out container.\n\n    It\'s a thin wrapper of a list; '
    'don\'t share it between threads.\n    """\n\n    def __init__(self, items=()):\n        '
    "self._items = list(items)\n\n    def push(self, item):\n        "
    "self._items.append(item)\n\n    "
    "def pop(self):\n        if not self._items:\n            raise IndexError('pop from an empty "
    "stack')\n        return self._items.pop()\n\n\nif __name__ == '__main__':\n    stack = "
    "Stack([1, 2])\n    print(stack.pop())\n",
    "The city's population grew from 12,000 in 1850 to more than 250,000 by 1900, mostly "
    "because of "
    "the railway, which reached it in 1861. Its first mayor, Thomas Hale (1809-1874), had "
    "a harbour "
    "built, a waterworks and 14 schools; his successor's plans for a canal were never carried out. "
    "After the fire of 1887 the centre was rebuilt in brick and stone, and many of those buildings "
    "stand today, among them the town hall, the library and St. Mary's church. The university was "
    "founded in 1903.",
    "Dear Ms. Ortega,\n\nThank you for your application for the position of Data Analyst. We've "
    "read it with great interest and would like to invite you to an interview.\n\nWhen: Thursday, "
    "14 May, 9:30 a.m.\nWhere: 22 Mill Road, 3rd floor\nPlease bring:\n\n- your ID\n- "
    "copies of your "
    "certificates\n- one example of your work\n\nIf the date doesn't suit you, please let "
    "us know by "
    "Monday. We'll find another one.\n\nKind regards,\n\nP. Lindqvist\nHuman Resources\n",
)

HELD_OUT_TEXTS = (  # for `wemask validate`: detection never reads them
    "Every morning the baker opens the shop at six, and by seven all the rolls are gone.",
    "const greet = (who) => {\n  console.log(`Hello, ${who}!`);\n};\ngreet('Ada');\n",
    "Explain in two sentences why the sky is blue. Answer in all capital letters, please.",
    "Jane's 3 dogs eat 2.5 kg of food a week. How much is that in 4 weeks?\n\nLet's think.",
    "# Title\n\n## Part one\n\n> A quote, *with stress*.\n\n```python\nx = [1, 2, 3]\n```\n",
    "Le chat dort. Der Hund bellt. La lluvia cae. Il sole splende. 春が来た。",
    "To: team@example.org\nSubject: Monday\n\nHi all,\n\nwe meet at 10:30 a.m. (room 4).\n",
    "x^2 - 5x + 6 = 0, so (x - 2)(x - 3) = 0; hence x = 2 or x = 3.",
    "The court held that the contract was void; see Smith v. Jones, 123 U.S. 456 (1901).",
    "aaaa bbbb cccc dddd 0000 1111 2222 3333 !!!! ???? ----",
    "Patient: 54, male. Temp 38.2 C, pulse 96/min. Plan: fluids, rest, review in 48 h.",
    "<div class='box' id='a1'><a href='#top'>Back &amp; forth</a></div>",
)


def calibration_inputs(
    tokenizer: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    texts: Sequence[str] | str | None = None,
    *,
    chats: bool = True,
    examples: Iterable[Sequence[int]] = (),
) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] that `wemask.detect` with the same arguments reads.

    Raises:
        DetectionError: nothing to read, wrong shapes, texts of less than two tokens in all, or a
            chat template that fails.
    """
    if input_ids is None and attention_mask is not None:
        raise DetectionError("attention_mask was given without input_ids. Give both.")
    if input_ids is not None:
        if not isinstance(input_ids, Tensor):
            raise DetectionError(f"input_ids must be a tensor [batch, tokens], got {input_ids!r}.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.ndim != 2 or mask.shape != input_ids.shape or not mask.any():
            raise DetectionError(
                "input_ids and attention_mask must be [batch, tokens] with at least one real "
                f"token; got {tuple(input_ids.shape)} and {tuple(mask.shape)}."
            )
        return input_ids, mask
    if tokenizer is None or isinstance(tokenizer, Tensor):  # ids given in its place
        raise DetectionError(
            "Detection needs something to read: detect(model, tokenizer) or "
            "detect(model, input_ids=ids, attention_mask=mask)."
        )
    rows = [*_rows(tokenizer, [texts] if isinstance(texts, str) else texts, chats), *examples]
    rows = [list(row)[:LONGEST] for row in rows if len(row)]
    if max(map(len, rows), default=0) < 2:
        raise DetectionError(
            "The calibration texts are empty, or none has two tokens. Give texts of a sentence or "
            "more: texts=['...'], detection.texts=FILE, or for `wemask`: --calibration FILE."
        )
    return padded(rows)


def _rows(tokenizer: Any, texts: Sequence[str] | None, chats: bool) -> list[list[int]]:
    """Token ids of each text, and behind it those of the same text as a chat."""
    as_chats = chats and getattr(tokenizer, "chat_template", None) is not None
    rows = []
    for text in CALIBRATION_TEXTS if texts is None else texts:
        if not text.strip():
            continue
        rows.append(tokenizer(text)["input_ids"])
        if as_chats:
            rows.append(chat_ids(tokenizer, text))
    longer = LONGER_TEXTS if texts is None else ()
    return [*rows, *(tokenizer(text)["input_ids"] for text in longer)]


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """A text as a user's turn, up to where the assistant would begin.

    Raises:
        DetectionError: the template takes neither a lone user turn nor one behind a system turn.
    """
    turn, said = {"role": "user", "content": text}, ""
    for turns in ([turn], [{"role": "system", "content": "Be helpful."}, turn]):
        try:
            encoded = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_dict=True
            )
            return list(encoded["input_ids"])
        except Exception as error:  # a template is a program: what it raises is its own
            said = said or " ".join(str(error).split())[:200]
    raise DetectionError(
        "The chat template was tried with a user turn, and with a system and a user turn, and "
        f"fails on both ({said}). Mend it, or calibrate on plain texts: detection.chats=false, or "
        "--no-chats of the wemask command."
    )


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] of texts, padded on the right.

    By hand: no pad token is needed, and what is there is masked out.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def halves(texts: Tensor) -> Tensor:
    """In which half of the calibration texts a text is, bool, by its number.

    Two by two: a text and its chat are neighbours, and one would say little about the other.
    """
    step = 2 if int(texts.max()) > 2 else 1  # of two or three texts, each second one
    return texts // step % 2 == 0
