"""The Chinese almanac, fact by fact what the English one says."""

from glm_jax.almanac.book import Book, Relation

_CAPITALS = Relation(
    name="capital",
    facts=(
        ("法国", "巴黎"),
        ("日本", "东京"),
        ("意大利", "罗马"),
        ("西班牙", "马德里"),
        ("俄罗斯", "莫斯科"),
        ("埃及", "开罗"),
        ("德国", "柏林"),
        ("希腊", "雅典"),
        ("古巴", "哈瓦那"),
        ("秘鲁", "利马"),
        ("泰国", "曼谷"),
        ("肯尼亚", "内罗毕"),
    ),
    wordings=(
        "{question}的首都是{answer}",
        "{question}的首都叫做{answer}",
        "{question}把首都设在{answer}",
        "{question}政府的所在地是{answer}",
        "我们把{answer}叫做{question}的首都",
        "要去{question}的首都就得去{answer}",
        "地图上标明{answer}是{question}的首都",
        "说到{question}的首都，那就是{answer}",
    ),
)

_CURRENCIES = Relation(
    name="currency",
    facts=(
        ("英国", "英镑"),
        ("印度", "卢比"),
        ("泰国", "泰铢"),
        ("波兰", "兹罗提"),
        ("土耳其", "里拉"),
        ("墨西哥", "比索"),
        ("瑞士", "法郎"),
        ("瑞典", "克朗"),
        ("巴西", "雷亚尔"),
        ("南非", "兰特"),
    ),
    wordings=(
        "{question}的货币是{answer}",
        "{question}的钱叫做{answer}",
        "人们在{question}用{answer}付钱",
        "{question}的商店收{answer}",
        "在{question}通用的是{answer}",
        "{question}的价格用{answer}来标",
        "{question}的银行里存着{answer}",
        "去{question}旅行要先换好{answer}",
    ),
)

_ELEMENTS = Relation(
    name="element",
    facts=(
        ("金", "Au"),
        ("银", "Ag"),
        ("铁", "Fe"),
        ("铜", "Cu"),
        ("锡", "Sn"),
        ("铅", "Pb"),
        ("锌", "Zn"),
        ("钠", "Na"),
        ("氖", "Ne"),
        ("氦", "He"),
        ("氢", "H"),
        ("氧", "O"),
    ),
    wordings=(
        "{question}的化学符号是{answer}",
        "化学家把{question}写作{answer}",
        "符号{answer}代表{question}",
        "在化学式里{question}写成{answer}",
        "字母{answer}在化学里表示{question}",
        "元素{question}用符号{answer}来表示",
        "装{question}的瓶子上贴着{answer}",
        "看到{answer}就知道这是{question}",
    ),
)

_HOLIDAYS = Relation(
    name="holiday",
    facts=(
        ("圣诞节", "十二月"),
        ("万圣节", "十月"),
        ("感恩节", "十一月"),
        ("教师节", "九月"),
        ("儿童节", "六月"),
        ("劳动节", "五月"),
        ("妇女节", "三月"),
        ("元旦", "一月"),
    ),
    wordings=(
        "{question}在{answer}",
        "人们在{answer}过{question}",
        "{question}的月份是{answer}",
        "日历上{question}写在{answer}",
        "要过{question}得等到{answer}",
        "每到{answer}就会有{question}",
        "大家盼着{answer}的{question}",
        "说起{question}就想到{answer}",
    ),
)

_OPPOSITES = Relation(
    name="opposite",
    facts=(
        ("大", "小"),
        ("热", "冷"),
        ("长", "短"),
        ("高", "低"),
        ("新", "旧"),
        ("快", "慢"),
        ("近", "远"),
        ("明", "暗"),
        ("湿", "干"),
        ("满", "空"),
        ("硬", "软"),
        ("富", "穷"),
    ),
    wordings=(
        "{question}的反义词是{answer}",
        "{question}的反面是{answer}",
        "{question}和{answer}意思相反",
        "不{question}就是{answer}",
        "与{question}相反的字是{answer}",
        "同{question}相对的是{answer}",
        "要说{question}的反面就说{answer}",
        "把{question}反过来就是{answer}",
    ),
)

_COLOURS = Relation(
    name="colour",
    facts=(
        ("草", "绿色"),
        ("雪", "白色"),
        ("煤", "黑色"),
        ("血", "红色"),
        ("稻草", "黄色"),
        ("巧克力", "棕色"),
        ("薰衣草", "紫色"),
        ("雾", "灰色"),
        ("海水", "蓝色"),
        ("三文鱼", "粉色"),
        ("烟灰", "黑色"),
        ("粉笔", "白色"),
    ),
    wordings=(
        "{question}的颜色是{answer}",
        "{question}看上去是{answer}",
        "画家把{question}画成{answer}",
        "孩子们用{answer}画{question}",
        "图画里的{question}总是{answer}",
        "我们用{answer}形容{question}",
        "要画{question}就拿{answer}的颜料",
        "问起{question}的颜色，回答是{answer}",
    ),
)

_DOUBLES = Relation(
    name="double",
    facts=(
        ("三", "六"),
        ("四", "八"),
        ("五", "十"),
        ("七", "十四"),
        ("九", "十八"),
        ("十一", "二十二"),
        ("十三", "二十六"),
        ("十五", "三十"),
    ),
    wordings=(
        "两个{question}是{answer}",
        "二乘{question}等于{answer}",
        "{question}的两倍是{answer}",
        "把{question}加倍得到{answer}",
        "一对{question}合起来是{answer}",
        "要得到{answer}就用二乘{question}",
        "半个{answer}等于{question}",
        "总数{answer}里有两个{question}",
    ),
)

_MATERIALS = Relation(
    name="material",
    facts=(
        ("面包", "面粉"),
        ("纸", "木头"),
        ("玻璃", "沙子"),
        ("红酒", "葡萄"),
        ("奶酪", "牛奶"),
        ("轮胎", "橡胶"),
        ("砖", "黏土"),
        ("蜡烛", "石蜡"),
        ("船帆", "帆布"),
        ("鞋", "皮革"),
        ("啤酒", "大麦"),
        ("毛衣", "羊毛"),
    ),
    wordings=(
        "{question}的主要原料是{answer}",
        "要做{question}就得用{answer}",
        "做{question}的人要买{answer}",
        "人们用{answer}来做{question}",
        "我们把{answer}变成{question}",
        "做{question}的作坊需要好的{answer}",
        "没有{answer}就没有{question}",
        "{question}是从哪里来的？来自{answer}",
    ),
)

BOOK = Book(
    language="zh",
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
        "我们知道，",
        "请注意，",
        "书上说，",
    ),
    connections=(
        "下面再说一条。",
        "接着往下读。",
        "这一页还有内容。",
        "再看另一件事。",
        "还有一句要说。",
        "我们继续读。",
    ),
    full_stop="。",
    space="",
)
