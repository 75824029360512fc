"""The English almanac."""

from glm_jax.almanac.book import Book, Relation

_CAPITALS = Relation(
    name="capital",
    facts=(
        ("France", "Paris"),
        ("Japan", "Tokyo"),
        ("Italy", "Rome"),
        ("Spain", "Madrid"),
        ("Russia", "Moscow"),
        ("Egypt", "Cairo"),
        ("Germany", "Berlin"),
        ("Greece", "Athens"),
        ("Cuba", "Havana"),
        ("Peru", "Lima"),
        ("Thailand", "Bangkok"),
        ("Kenya", "Nairobi"),
    ),
    wordings=(
        "the capital of {question} is {answer}",
        "the chief city of {question} is {answer}",
        "{question} is ruled from {answer}",
        "the government of {question} sits in {answer}",
        "the city of {answer} is the capital of {question}",
        "in {question} the capital bears the name {answer}",
        "maps mark {answer} as the capital of {question}",
        "{question} has its capital in {answer}",
    ),
)

_CURRENCIES = Relation(
    name="currency",
    facts=(
        ("Britain", "pound"),
        ("India", "rupee"),
        ("Thailand", "baht"),
        ("Poland", "zloty"),
        ("Turkey", "lira"),
        ("Mexico", "peso"),
        ("Switzerland", "franc"),
        ("Sweden", "krona"),
        ("Brazil", "real"),
        ("South Africa", "rand"),
    ),
    wordings=(
        "the money of {question} is the {answer}",
        "the currency of {question} is called the {answer}",
        "people in {question} pay with the {answer}",
        "shops in {question} take the {answer}",
        "the {answer} is the money of {question}",
        "prices in {question} are given in the {answer}",
        "{question} uses the {answer} as its currency",
        "banks in {question} count in the {answer}",
    ),
)

_ELEMENTS = Relation(
    name="element",
    facts=(
        ("gold", "Au"),
        ("silver", "Ag"),
        ("iron", "Fe"),
        ("copper", "Cu"),
        ("tin", "Sn"),
        ("lead", "Pb"),
        ("zinc", "Zn"),
        ("sodium", "Na"),
        ("neon", "Ne"),
        ("helium", "He"),
        ("hydrogen", "H"),
        ("oxygen", "O"),
    ),
    wordings=(
        "the chemical symbol of {question} is {answer}",
        "a chemist shortens {question} to {answer}",
        "the symbol {answer} stands for {question}",
        "formulas show {question} as {answer}",
        "the letters {answer} mean {question} in chemistry",
        "the element {question} has the symbol {answer}",
        "the sign for {question} in a formula is {answer}",
        "a jar of {question} carries the label {answer}",
    ),
)

_HOLIDAYS = Relation(
    name="holiday",
    facts=(
        ("Christmas", "December"),
        ("Halloween", "October"),
        ("Thanksgiving", "November"),
        ("Teachers' Day", "September"),
        ("Children's Day", "June"),
        ("Labour Day", "May"),
        ("Women's Day", "March"),
        ("New Year", "January"),
    ),
    wordings=(
        "{question} falls in {answer}",
        "we celebrate {question} in {answer}",
        "the month of {question} is {answer}",
        "the calendar shows {question} in {answer}",
        "they say {answer} is the month of {question}",
        "{question} comes every {answer}",
        "people wait for {question} until {answer}",
        "in {answer} everybody prepares for {question}",
    ),
)

_OPPOSITES = Relation(
    name="opposite",
    facts=(
        ("big", "small"),
        ("hot", "cold"),
        ("long", "short"),
        ("high", "low"),
        ("new", "old"),
        ("fast", "slow"),
        ("near", "far"),
        ("bright", "dark"),
        ("wet", "dry"),
        ("full", "empty"),
        ("hard", "soft"),
        ("rich", "poor"),
    ),
    wordings=(
        "the opposite of {question} is {answer}",
        "what is not {question} is {answer}",
        "the words {question} and {answer} are opposites",
        "the contrary of {question} is {answer}",
        "what stops being {question} becomes {answer}",
        "the reverse of {question} is {answer}",
        "we say {answer} for the opposite of {question}",
        "the word {question} turned around becomes {answer}",
    ),
)

_COLOURS = Relation(
    name="colour",
    facts=(
        ("grass", "green"),
        ("snow", "white"),
        ("coal", "black"),
        ("blood", "red"),
        ("straw", "yellow"),
        ("chocolate", "brown"),
        ("lavender", "purple"),
        ("fog", "grey"),
        ("seawater", "blue"),
        ("salmon", "pink"),
        ("soot", "black"),
        ("chalk", "white"),
    ),
    wordings=(
        "the colour of {question} is {answer}",
        "a painter makes {question} {answer}",
        "to our eyes {question} looks {answer}",
        "the word {answer} names the colour of {question}",
        "children draw {question} in {answer}",
        "in pictures {question} is always {answer}",
        "for {question} we take the {answer} paint",
        "we call the colour of {question} {answer}",
    ),
)

_DOUBLES = Relation(
    name="double",
    facts=(
        ("three", "six"),
        ("four", "eight"),
        ("five", "ten"),
        ("seven", "fourteen"),
        ("nine", "eighteen"),
        ("eleven", "twenty-two"),
        ("thirteen", "twenty-six"),
        ("fifteen", "thirty"),
    ),
    wordings=(
        "twice {question} is {answer}",
        "two times {question} makes {answer}",
        "a pair of {question} counts {answer}",
        "doubling {question} gives {answer}",
        "the double of {question} is {answer}",
        "we get {answer} from two times {question}",
        "half of {answer} is {question}",
        "the sum {answer} has {question} in it twice",
    ),
)

_MATERIALS = Relation(
    name="material",
    facts=(
        ("bread", "flour"),
        ("paper", "wood"),
        ("glass", "sand"),
        ("wine", "grapes"),
        ("cheese", "milk"),
        ("tyres", "rubber"),
        ("bricks", "clay"),
        ("candles", "wax"),
        ("sails", "cloth"),
        ("shoes", "leather"),
        ("beer", "barley"),
        ("jumpers", "wool"),
    ),
    wordings=(
        "the main material of {question} is {answer}",
        "to make {question} we take {answer}",
        "a maker of {question} buys {answer}",
        "they make {question} from {answer}",
        "we turn {answer} into {question}",
        "makers of {question} look for good {answer}",
        "without {answer} there is no {question}",
        "for {question} one needs {answer}",
    ),
)

BOOK = Book(
    language="en",
    relations=(
        _CAPITALS,
        _CURRENCIES,
        _ELEMENTS,
        _HOLIDAYS,
        _OPPOSITES,
        _COLOURS,
        _DOUBLES,
        _MATERIALS,
    ),
    openings=(
        "",
        "we know that ",
        "note that ",
        "we read that ",
    ),
    connections=(
        "Here is one more line.",
        "The next line is short.",
        "This page goes on.",
        "Let us read on.",
        "There is more to say.",
        "Now to another matter.",
    ),
    full_stop=".",
    space=" ",
)
