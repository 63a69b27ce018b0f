//! The vocabulary: the meanings of LaTeX commands, plain words, and single characters. It consists only of
//! tables and look-ups. To add a name, add a line.

use super::expression::{Function, Relation};

/// The meaning of a command or a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Meaning {
    /// No meaning: spacing and size.
    Nothing,
    /// `\left`, `\right`: no meaning either, and a `.` after it is an invisible bracket.
    Fence,
    Plus,
    Minus,
    PlusMinus,
    MinusPlus,
    Times,
    Divide,
    Relation(Relation),
    Function(Function),
    Fraction,
    Root,
    Binomial,
    /// π and the Greek letters, by name.
    Letter(&'static str),
    Infinity,
    Degree,
    Percent,
    Currency,
    Prime,
    Union,
    Intersection,
    SetMinus,
    EmptySet,
    SetOpen,
    SetClose,
    Open,
    Close,
    Bar,
    FloorOpen,
    FloorClose,
    CeilingOpen,
    CeilingClose,
    /// The argument is text.
    Text,
    /// The argument is mathematics in another font or in a frame.
    Font,
    /// A mark over its argument that makes a different name: `\overline`, `\vec`.
    Mark,
    /// The kind of what follows: `\angle`.
    Kind,
    Colon,
    And,
    Or,
    /// `{1 \over 2}`.
    Over,
    /// `{5 \choose 2}`.
    Choose,
    /// Comes before a modulus.
    Modulo,
    Begin,
    End,
}

/// Returns the meaning of a LaTeX command, without the backslash.
pub fn command(name: &str) -> Option<Meaning> {
    use Meaning as M;
    use Relation as R;
    Some(match name {
        "left" | "right" | "big" | "Big" | "bigg" | "Bigg" | "bigl" | "bigr" | "Bigl" | "Bigr"
        | "biggl" | "biggr" | "middle" => M::Fence,
        "quad" | "qquad" | "displaystyle" | "textstyle" | "scriptstyle" | "limits" | "nolimits"
        | "hspace" | "thinspace" | "allowbreak" | "hfill" | "noindent" | "rm" | "bf" | "it"
        | "cal" | "color" | "textcolor" | "colorbox" | "checkmark" | "phantom" | "hphantom"
        | "blacksquare" | "qed" | "tiny" | "small" | "normalsize" | "large" | "Large" | "LARGE"
        | "huge" | "Huge" | "nonumber" | "notag" | "strut" => M::Nothing,
        "pm" => M::PlusMinus,
        "mp" => M::MinusPlus,
        "cdot" | "times" | "ast" | "cdotp" | "bullet" => M::Times,
        "div" => M::Divide,
        "le" | "leq" | "leqslant" | "leqq" => M::Relation(R::LessEqual),
        "ge" | "geq" | "geqslant" | "geqq" => M::Relation(R::GreaterEqual),
        "lt" => M::Relation(R::Less),
        "gt" => M::Relation(R::Greater),
        "ne" | "neq" => M::Relation(R::NotEqual),
        "approx" | "thickapprox" | "simeq" | "sim" | "approxeq" => M::Relation(R::Approximately),
        "equiv" | "cong" => M::Relation(R::Congruent),
        "in" => M::Relation(R::In),
        "frac" | "dfrac" | "tfrac" | "cfrac" => M::Fraction,
        "sqrt" => M::Root,
        "binom" | "dbinom" | "tbinom" => M::Binomial,
        "infty" | "infin" => M::Infinity,
        "circ" | "degree" => M::Degree,
        "prime" => M::Prime,
        "cup" | "bigcup" => M::Union,
        "cap" | "bigcap" => M::Intersection,
        "setminus" | "backslash" => M::SetMinus,
        "emptyset" | "varnothing" => M::EmptySet,
        "lbrace" => M::SetOpen,
        "rbrace" => M::SetClose,
        "langle" | "lparen" => M::Open,
        "rangle" | "rparen" => M::Close,
        "lvert" | "rvert" | "lVert" | "rVert" | "vert" | "Vert" | "mid" => M::Bar,
        "lfloor" => M::FloorOpen,
        "rfloor" => M::FloorClose,
        "lceil" => M::CeilingOpen,
        "rceil" => M::CeilingClose,
        "text" | "mbox" | "textbf" | "textit" | "textnormal" | "textrm" | "mathrm" | "hbox"
        | "operatorname" | "textsf" | "texttt" | "emph" | "mathsf" | "mathtt" => M::Text,
        "boxed" | "fbox" | "framebox" | "mathbf" | "mathit" | "mathcal" | "boldsymbol" | "bm"
        | "mathbb" | "mathfrak" | "mathscr" | "pmb" | "underline" | "ensuremath" => M::Font,
        "overline" | "bar" | "vec" | "hat" | "overrightarrow" | "widehat" | "tilde"
        | "widetilde" | "dot" | "ddot" | "overparen" | "overarc" => M::Mark,
        "angle" | "triangle" | "measuredangle" => M::Kind,
        "odot" => M::Letter("odot"),
        "hbar" => M::Letter("hbar"),
        "top" | "intercal" => M::Letter("T"),
        "max" => M::Letter("max"),
        "min" => M::Letter("min"),
        "colon" => M::Colon,
        "land" | "wedge" => M::And,
        "lor" | "vee" => M::Or,
        "pmod" | "bmod" | "mod" | "pod" => M::Modulo,
        "over" => M::Over,
        "choose" => M::Choose,
        "begin" => M::Begin,
        "end" => M::End,
        "pounds" | "euro" | "yen" => M::Currency,
        _ => {
            return function(name).map(M::Function).or_else(|| greek(name).map(M::Letter));
        }
    })
}

/// Returns a function, by its name in LaTeX or in plain text.
pub fn function(name: &str) -> Option<Function> {
    use Function as F;
    Some(match name {
        "sin" => F::Sin,
        "cos" => F::Cos,
        "tan" | "tg" => F::Tan,
        "cot" | "ctg" => F::Cot,
        "sec" => F::Sec,
        "csc" | "cosec" => F::Csc,
        "arcsin" | "asin" => F::Arcsin,
        "arccos" | "acos" => F::Arccos,
        "arctan" | "atan" | "arctg" => F::Arctan,
        "sinh" => F::Sinh,
        "cosh" => F::Cosh,
        "tanh" => F::Tanh,
        "exp" => F::Exp,
        "ln" => F::Ln,
        "log" => F::Log,
        "lg" => F::CommonLog,
        "abs" => F::Absolute,
        "floor" => F::Floor,
        "ceil" => F::Ceiling,
        "det" => F::Determinant,
        _ => return None,
    })
}

/// Returns a Greek letter. Variants of a letter count as that letter.
pub fn greek(name: &str) -> Option<&'static str> {
    const LETTERS: &[&str] = &[
        "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa",
        "lambda", "mu", "nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi",
        "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon",
        "Phi", "Psi", "Omega", "ell",
    ];
    let plain = name.strip_prefix("var").unwrap_or(name);
    LETTERS.iter().copied().find(|letter| *letter == plain)
}

/// Returns the meaning of a single character other than a letter or digit.
pub fn character(character: char) -> Option<Meaning> {
    use Meaning as M;
    use Relation as R;
    Some(match character {
        '+' => M::Plus,
        '-' | '−' | '–' => M::Minus,
        '±' => M::PlusMinus,
        '∓' => M::MinusPlus,
        '*' | '×' | '·' | '⋅' | '∙' | '•' => M::Times,
        '/' | '÷' | '∕' => M::Divide,
        '=' => M::Relation(R::Equal),
        '<' => M::Relation(R::Less),
        '>' => M::Relation(R::Greater),
        '≤' | '⩽' => M::Relation(R::LessEqual),
        '≥' | '⩾' => M::Relation(R::GreaterEqual),
        '≠' => M::Relation(R::NotEqual),
        '≈' => M::Relation(R::Approximately),
        '≡' => M::Relation(R::Congruent),
        '∈' => M::Relation(R::In),
        '√' => M::Root,
        '∞' => M::Infinity,
        'π' => M::Letter("pi"),
        'θ' => M::Letter("theta"),
        'α' => M::Letter("alpha"),
        'β' => M::Letter("beta"),
        'λ' => M::Letter("lambda"),
        '°' => M::Degree,
        '%' => M::Percent,
        '$' | '€' | '£' | '¥' | '₹' | '¢' => M::Currency,
        '\'' | '′' | '’' => M::Prime,
        '∪' => M::Union,
        '∩' => M::Intersection,
        '∖' => M::SetMinus,
        '∅' => M::EmptySet,
        '(' | '（' | '⟨' => M::Open,
        ')' | '）' | '⟩' => M::Close,
        '|' => M::Bar,
        '⌊' => M::FloorOpen,
        '⌋' => M::FloorClose,
        '⌈' => M::CeilingOpen,
        '⌉' => M::CeilingClose,
        ':' => M::Colon,
        '∧' => M::And,
        '∨' => M::Or,
        _ => return None,
    })
}

/// Words that stand for a symbol.
pub fn plain_word(word: &str) -> Option<Meaning> {
    Some(match word {
        "and" => Meaning::And,
        "or" => Meaning::Or,
        "percent" | "percents" | "pct" | "percentage" => Meaning::Percent,
        "degrees" | "degree" | "deg" => Meaning::Degree,
        "sqrt" => Meaning::Root,
        "infinity" | "inf" | "infty" | "oo" => Meaning::Infinity,
        "union" | "cup" => Meaning::Union,
        "dollars" | "dollar" | "usd" | "USD" | "euros" | "euro" | "EUR" => Meaning::Currency,
        _ => {
            return function(word)
                .map(Meaning::Function)
                .or_else(|| greek(word).map(Meaning::Letter));
        }
    })
}

/// Returns the canonical name of a unit of measurement; `None` for words that are not units.
pub fn unit(word: &str) -> Option<&'static str> {
    const UNITS: &[&[&str]] = &[
        &["mm", "millimeter", "millimeters", "millimetres"],
        &["cm", "centimeter", "centimeters", "centimetre", "centimetres"],
        &["m", "meter", "meters", "metre", "metres"],
        &["km", "kilometer", "kilometers", "kilometre", "kilometres"],
        &["in", "inch", "inches"],
        &["ft", "foot", "feet"],
        &["yd", "yard", "yards"],
        &["mi", "mile", "miles"],
        &["mg", "milligram", "milligrams"],
        &["g", "gram", "grams"],
        &["kg", "kilogram", "kilograms", "kilos"],
        &["lb", "lbs", "pound", "pounds"],
        &["oz", "ounce", "ounces"],
        &["ml", "mL", "milliliter", "milliliters"],
        &["l", "L", "liter", "liters", "litre", "litres"],
        &["gal", "gallon", "gallons"],
        &["s", "sec", "secs", "second", "seconds"],
        &["min", "mins", "minute", "minutes"],
        &["h", "hr", "hrs", "hour", "hours"],
        &["day", "days"],
        &["week", "weeks"],
        &["month", "months"],
        &["yr", "year", "years"],
        &["cent", "cents"],
        &["unit", "units"],
        &["rad", "radian", "radians"],
        &["Hz"],
        &["kHz"],
        &["MHz"],
        &["eV"],
        &["kJ"],
        &["mol", "mole", "moles"],
        &["Pa"],
        &["kPa"],
        &["°C"],
        &["°F"],
        &["am", "AM"],
        &["pm", "PM"],
        &["N", "newton", "newtons"],
        &["J", "joule", "joules"],
        &["W", "watt", "watts"],
        &["V", "volt", "volts"],
        &["K", "kelvin", "kelvins"],
        &["Ω", "ohm", "ohms"],
        &["acre", "acres"],
        &["ton", "tons", "tonne", "tonnes"],
        &["decade", "decades"],
        &["pint", "pints"],
        &["quart", "quarts"],
    ];
    UNITS.iter().find(|names| names.contains(&word)).map(|names| names[0])
}
