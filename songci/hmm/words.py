"""The words of the HMM walk-through, in Chinese and English."""

WORDS = {
    "model": ("模型 λ = (π, A, B)", "The model λ = (π, A, B)"),
    "observed": ("观测序列", "Observations"),
    "forward": ("前向算法：前向变量 α", "The forward algorithm: α"),
    "backward": ("后向算法：后向变量 β", "The backward algorithm: β"),
    "likelihood": ("评估问题：P(O|λ) 的三种求法", "The evaluation problem: P(O|λ) three ways"),
    "gamma": ("后验概率 γ：给定 O 时各时刻处于各状态的概率", "The posterior γ: the probability of each state, given O"),
    "xi": (
        "后验概率 ξ：给定 O 时相邻两个时刻状态的联合概率",
        "The posterior ξ: the probability of each transition, given O",
    ),
    "paths": ("枚举全部 {n} 条路径", "All {n} paths"),
    "path": ("路径", "path"),
    "share": ("占 P(O)", "share of P(O)"),
    "sum": ("合计", "sum"),
    "viterbi": ("解码问题：维特比（Viterbi）算法", "The decoding problem: the Viterbi algorithm"),
    "trace": ("从最后一个时刻回溯：", "Traced back from the last time step:"),
    "ties": ("概率相等时，取序号较小的状态。", "Ties go to the state with the lower number."),
    "answer": ("答案", "The answer"),
    "kbest": ("概率最大的 {n} 条路径", "The {n} most probable paths"),
    "fewer": ("概率不为 0 的路径只有这些。", "No other path is possible."),
    "sequence": ("第 {i} 个序列，共 {n} 个", "Sequence {i} of {n}"),
    "left out": (
        "（共 {n} 行，此处只显示开头和末尾；完整结果见 --format json）",
        "({n} rows, of which only the first and last are shown; --format json prints them all)",
    ),
    "wide matrix": ("（共 {n} 列，此处不显示）", "({n} columns, not shown here)"),
    "wide": (
        "（共 {n} 列，此处不显示；完整结果见 --format json）",
        "({n} columns, not shown here; --format json prints them)",
    ),
    "sentence": (
        "观测序列 {obs} 的概率为 {p}。最可能的状态序列是 {path}，其概率为 {best}{share}。",
        "The probability of {obs} is {p}. The most probable state sequence is {path}, with probability {best}{share}.",
    ),
    "its share": ("，占 P(O) 的 {share:.1%}", ", which is {share:.1%} of P(O)"),
    "impossible": (
        "P(O) = 0：没有任何状态序列能产生前 {t} 个观测，因此没有后验概率，也没有最优路径。",
        "P(O) = 0: no state sequence emits the first {t} observation(s), so there are no posteriors and no best path.",
    ),
    "comma": ("、", ", "),
}


class Words:
    """The words of one language: say("sum"), or say("path", n=3) with something filled in."""

    def __init__(self, lang: str):
        self.index = ("zh", "en").index(lang)

    def __call__(self, key: str, **values) -> str:
        return WORDS[key][self.index].format(**values)
