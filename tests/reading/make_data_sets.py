"""Rows of our own in the columns and types of public datasets, for tests/reading/data_sets.rs.

    python make_data_sets.py data_sets

Needs pyarrow 26.0.1. Writes each dataset as JSONL and as Parquet.
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
S, B, I, F = pa.string(), pa.bool_(), pa.int64(), pa.float64()
L = pa.list_


def turns(role, text):
    return L(pa.struct([(role, S), (text, S)]))


def thought(n):
    return f"<|begin_of_thought|>\n\n{n} and {n}.\n\n<|end_of_thought|>\n\n" + (
        f"<|begin_of_solution|>\n\nThe sum is \\boxed{{{2 * n}}}.\n\n<|end_of_solution|>"
    )


def deepseek(n):
    return f"<think>\n{n} and {n}.\n</think>\n\nThe sum is \\boxed{{{2 * n}}}."


MARKS = (
    "Give the Thought section as <|begin_of_thought|> {thought} <|end_of_thought|>, and the Solution "
    "section as <|begin_of_solution|> {solution} <|end_of_solution|>."
)
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    'Answer: $Answer (without quotes).\n\n{}\n\nRemember to put your answer on its own line after "Answer:".'
)


def problem(n):
    return f"What is {n} + {n}?"


def human(n):
    return f"We add: ${n} + {n} = \\boxed{{{2 * n}}}$."


def messages(n, answer):
    return [{"content": problem(n), "role": "user"}, {"content": answer, "role": "assistant"}]


def dialogue(n):
    return [{"from": "user", "value": problem(n)}, {"from": "assistant", "value": thought(n)}]


def open_r1(n):
    """Five rows: the first answer is right, the second, only by the other judge, none, nobody said."""
    right = [[True, False], [False, True], [False, False], [False, False], [None, None]][n - 1]
    llama = [None, [None, None], [False, True], [None, False], None][n - 1]
    complete = [[True, True], [True, True], [True, True], [True, False], [True, True]][n - 1]
    return dict(
        problem=problem(n), solution=human(n), answer=str(2 * n), problem_type="Algebra",
        question_type="math-word-problem", source="olympiads", uuid=f"uuid-{n}",
        is_reasoning_complete=complete, generations=[f"<think>\n{k}\n</think>\n\n{n}: {k}" for k in "ab"],
        correctness_math_verify=right, correctness_llama=llama, finish_reasons=["stop", None],
        correctness_count=sum(v is True for v in right), messages=messages(n, "of the messages"),
    )


SETS = {
    "gsm8k": (
        [("question", S), ("answer", S)],
        lambda n: dict(question=problem(n), answer=f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"),
    ),
    "math500": (
        [("problem", S), ("solution", S), ("answer", S), ("subject", S), ("level", I), ("unique_id", S)],
        lambda n: dict(
            problem=problem(n), solution=human(n), answer=str(2 * n), subject="Algebra", level=n,
            unique_id=f"test/algebra/{n}.json",
        ),
    ),
    "openr1_math": (
        [
            ("problem", S), ("solution", S), ("answer", S), ("problem_type", S), ("question_type", S),
            ("source", S), ("uuid", S), ("is_reasoning_complete", L(B)), ("generations", L(S)),
            ("correctness_math_verify", L(B)), ("correctness_llama", L(B)), ("finish_reasons", L(S)),
            ("correctness_count", I), ("messages", turns("content", "role")),
        ],
        open_r1,
    ),
    "openthoughts": (
        [("system", S), ("conversations", turns("from", "value"))],
        lambda n: dict(system=MARKS, conversations=dialogue(n)),
    ),
    "openthoughts_metadata": (
        [
            ("problem", S), ("deepseek_reasoning", S), ("deepseek_solution", S),
            ("ground_truth_solution", S), ("domain", S), ("source", S), ("test_cases", S),
            ("starter_code", S),
        ],
        lambda n: dict(
            problem=problem(n), deepseek_reasoning=f"{n} and {n}.",
            deepseek_solution=f"The sum is \\boxed{{{2 * n}}}.",
            ground_truth_solution=human(n) if n < 4 else None, domain="math", source="numina_math",
            test_cases=None, starter_code=None,
        ),
    ),
    "bespoke_stratos": (
        [("system", S), ("conversations", turns("from", "value"))],
        lambda n: dict(system=MARKS, conversations=dialogue(n)),
    ),
    "s1k_1_1": (
        [(name, S) for name in (
            "solution question cot_type source_type metadata gemini_thinking_trajectory gemini_attempt "
            "deepseek_thinking_trajectory deepseek_attempt gemini_grade gemini_grade_reason "
            "deepseek_grade deepseek_grade_reason"
        ).split()],
        lambda n: dict(
            solution=str(2 * n), question=problem(n), cot_type="math", source_type="AIME",
            metadata=f"{{'ID': '{n}', 'Problem': 'of the metadata'}}",
            gemini_thinking_trajectory="of Gemini", gemini_attempt="also of Gemini",
            deepseek_thinking_trajectory=f"{n} and {n}.",
            deepseek_attempt=f"The sum is \\boxed{{{2 * n}}}.", gemini_grade="No",
            gemini_grade_reason="It differs.", deepseek_grade=["No", "Yes"][n % 2],
            deepseek_grade_reason="It is the same.",
        ),
    ),
    "s1k": (
        [
            ("solution", S), ("question", S), ("cot_type", S), ("source_type", S), ("metadata", S),
            ("cot", pa.null()), ("thinking_trajectories", L(S)), ("attempt", S),
        ],
        lambda n: dict(
            solution=str(2 * n), question=problem(n), cot_type="math", source_type="AIME", metadata="{}",
            cot=None, thinking_trajectories=[f"{n} and {n}."], attempt=f"The sum is \\boxed{{{2 * n}}}.",
        ),
    ),
    "limo": (
        [("question", S), ("solution", S), ("answer", S)],
        lambda n: dict(question=problem(n), solution=human(n), answer=str(2 * n)),
    ),
    "numina_math_cot": (
        [("source", S), ("problem", S), ("solution", S), ("messages", turns("content", "role"))],
        lambda n: dict(source="amc_aime", problem=problem(n), solution=human(n),
                       messages=messages(n, human(n))),
    ),
    "openmathreasoning": (
        [
            ("expected_answer", S), ("problem_type", S), ("problem_source", S), ("generation_model", S),
            ("pass_rate_72b_tir", S), ("problem", S), ("generated_solution", S), ("inference_mode", S),
        ],
        lambda n: dict(
            expected_answer=str(2 * n), problem_type="has_answer_extracted", problem_source="aops",
            generation_model="DeepSeek-R1", pass_rate_72b_tir="0.65625", problem=problem(n),
            generated_solution=deepseek(n), inference_mode="cot",
        ),
    ),
    "dapo_math": (
        [
            ("data_source", S), ("prompt", turns("content", "role")), ("ability", S),
            ("reward_model", pa.struct([("ground_truth", S), ("style", S)])),
            ("extra_info", pa.struct([("index", S)])),
        ],
        lambda n: dict(
            data_source="math_dapo", prompt=[{"content": DAPO.format(problem(n)), "role": "user"}],
            ability="MATH", reward_model=dict(ground_truth=str(2 * n), style="rule-lighteval/MATH_v2"),
            extra_info=dict(index=f"index-{n}"),
        ),
    ),
    "rsr_data": (
        [("messages", turns("role", "content"))],
        lambda n: dict(messages=messages(n, deepseek(n))),
    ),
}

for name, (fields, row) in SETS.items():
    rows = [row(n) for n in range(1, 6)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    pq.write_table(table, out / f"{name}.parquet", row_group_size=3, compression="SNAPPY", write_statistics=False)
