"""The words of the HMM walk-through, in Chinese and English."""

WORDS = {
    "model": ("模型 λ = (π, A, B)", "The model λ = (π, A, B)"),
    "observed": ("观测序列", "Observations"),
    "forward": ("前向变量", "Forward variables"),
    "backward": ("后向变量", "Backward variables"),
    "likelihood": ("评估问题：P(O|λ) 的三种算法", "The evaluation problem: P(O|λ) three ways"),
    "gamma": ("给定 O 时各时刻的状态概率", "Probability of each state, given O"),
    "xi": ("给定 O 时的状态转移概率", "Probability of each transition, given O"),
    "paths": ("枚举全部 {n} 条路径", "All {n} paths"),
    "path": ("路径", "path"),
    "share": ("占 P(O)", "share of P(O)"),
    "sum": ("合计", "sum"),
    "viterbi": ("解码问题：Viterbi 算法", "The decoding problem: Viterbi"),
    "trace": ("从最后一列回溯：", "Traced back from the last row:"),
    "ties": ("相等时取序号较小的状态。", "Of equals, the state with the lower number is taken."),
    "answer": ("答案", "The answer"),
    "kbest": ("概率最大的 {n} 条路径", "The {n} most probable paths"),
    "fewer": ("只有这么多条路径的概率不为 0。", "No other path is possible."),
    "sequence": ("第 {i} 个序列，共 {n} 个", "Sequence {i} of {n}"),
    "left out": (
        "（共 {n} 行，只显示开头和末尾；--format json 给出全部）",
        "({n} rows, of which the first and last are shown; --format json has all)",
    ),
    "wide": ("（{n} 列，不在此显示；见 --format json）", "({n} columns, not shown here; --format json has them)"),
    "sentence": (
        "观测到 {obs} 的概率是 {p}。最可能的状态序列是 {path}，概率 {best}{share}。",
        "The probability of {obs} is {p}. The most probable state sequence is {path}, of probability {best}{share}.",
    ),
    "its share": ("，占 P(O) 的 {share:.1%}", ", which is {share:.1%} of P(O)"),
    "impossible": (
        "P(O) = 0：没有状态序列能产生前 {t} 个观测，因此没有后验概率，也没有最优路径。",
        "P(O) = 0: no state sequence emits the first {t} observation(s), so there are no posteriors and no best path.",
    ),
    "comma": ("，", ", "),
}


class Words:
    """The words of one language: say("sum"), or say("path", n=3) with something filled in."""

    def __init__(self, lang: str):
        self.index = ("zh", "en").index(lang)

    def __call__(self, key: str, **values) -> str:
        return WORDS[key][self.index].format(**values)
