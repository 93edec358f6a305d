//! Made-up texts of many kinds, for which tokens are counted and estimated. None is anybody's.

/// Texts by their kind.
pub(super) const TEXTS: [(&str, [&str; 3]); 8] = [
    (
        "English",
        [
            "The ferry leaves the northern pier at seven, and whoever misses it must walk around the bay, which takes \
             most of the day. Nobody minds in spring. In winter the path is covered with ice, and the innkeeper at the \
             lighthouse sells more soup than in all the other months together.",
            "Responsible administrators document their configuration before they change it. Unfortunately, \
             documentation is frequently outdated, and international organisations in particular underestimate how \
             quickly institutional knowledge disappears when experienced employees retire.",
            "Well, I don't know. Maybe? It's late, I'm tired, and you haven't told me what you want. Let's go to bed \
             and talk about it in the morning, OK? No? Fine. Then say it now, but say it fast.",
        ],
    ),
    (
        "German",
        [
            "Der Zug nach Süden fährt um halb acht vom hinteren Gleis, und wer ihn verpasst, muss bis zum Abend warten. \
             Im Wartesaal gibt es warmen Tee und alte Zeitungen, die niemand mehr liest.",
            "Die Genehmigungsbehörde verlangt eine Unbedenklichkeitsbescheinigung, bevor die \
             Grundstücksverkehrsgenehmigung erteilt werden kann. Für Rückfragen steht die Geschäftsstelle während der \
             Öffnungszeiten zur Verfügung.",
            "Ach, weißt du, das ist doch nicht so schlimm. Wir machen es einfach morgen, ja? Dann haben wir mehr Zeit, \
             und die Übungen für die Prüfung sind auch fertig.",
        ],
    ),
    (
        "code",
        [
            "def moving_average(values, window):\n    total = 0.0\n    for index, value in enumerate(values):\n        \
             total += value\n        if index >= window:\n            total -= values[index - window]\n        yield \
             total / min(index + 1, window)\n",
            "impl<'a> Iterator for Lines<'a> {\n    type Item = &'a str;\n\n    fn next(&mut self) -> Option<Self::Item> \
             {\n        let (head, tail) = self.rest.split_once('\\n')?;\n        self.rest = tail;\n        \
             Some(head)\n    }\n}\n",
            "#include <stdio.h>\n\nint main(int argc, char **argv) {\n\tfor (int i = 1; i < argc; ++i) {\n\t\tif \
             (argv[i][0] == '-') continue;\n\t\tprintf(\"%d: %s\\n\", i, argv[i]);\n\t}\n\treturn 0;\n}\n",
        ],
    ),
    (
        "JSON",
        [
            "{\"order\": {\"id\": \"A-20931\", \"lines\": [{\"sku\": \"BX-7\", \"count\": 3, \"price\": 12.5}, {\"sku\": \
             \"KL-12\", \"count\": 1, \"price\": 149.0}], \"paid\": true, \"note\": null}}",
            "{\"type\":\"FeatureCollection\",\"features\":[{\"type\":\"Feature\",\"geometry\":{\"type\":\"Point\",\
             \"coordinates\":[8.5417,47.3769]},\"properties\":{\"name\":\"Zurich\"}}]}",
            "{\n  \"name\": \"get_weather\",\n  \"arguments\": {\n    \"city\": \"Lisbon\",\n    \"unit\": \"celsius\",\n    \
             \"days\": [1, 2, 3]\n  }\n}",
        ],
    ),
    (
        "numbers",
        [
            "1971 1973 1979 1987 1993 1997 1999 2003 2011 2017 2027 2029 2039 2053 2063 2069 2081 2083 2087 2089 2099",
            "| 12.40 | 0.0031 | 7.2e-5 |\n| 13.91 | 0.0029 | 6.8e-5 |\n| 15.02 | 0.0035 | 9.1e-5 |\n",
            "2026-03-01T07:15:00Z 10.44.7.19 200 5312\n2026-03-01T07:15:02Z 10.44.9.201 404 187\n",
        ],
    ),
    (
        "Chinese",
        [
            "渡船每天早上七点从北边的码头出发，错过的人只好绕着海湾走一整天。春天没有人在意，冬天路上却结满了冰。",
            "请先备份数据库，然后再修改配置文件。如果服务无法启动，请检查日志中的错误信息，并联系管理员。",
            "你吃饭了吗？还没有。那我们一起去楼下的面馆吧，听说他们家的牛肉面很好吃。",
        ],
    ),
    (
        "Japanese",
        [
            "北の桟橋を出る渡し船は朝七時に出発します。乗り遅れた人は湾をぐるりと一日かけて歩かなければなりません。",
            "設定ファイルを変更する前に、必ずデータベースのバックアップを取ってください。エラーが出た場合は管理者に連絡します。",
            "えっと、今日はちょっと疲れたから、もう帰ってもいいかな。明日の朝、駅前のカフェで会おうよ。",
        ],
    ),
    (
        "emoji",
        [
            "Great job 🎉🎉🎉 see you tomorrow 👋🏽😀 don't forget the cake 🍰🎂 and the music 🎶🎸!!!",
            "🐙🦑🦐🦞🦀🐡🐠🐟🐬🐳🐋🦈🐊🐅🐆🦓🦍🦧🐘🦛🦏🐪🐫🦒🦘",
            "ok 👍 nice ❤️ lol 😂😂 brb 🏃‍♀️ family 👨‍👩‍👧‍👦 flags 🇵🇹🇯🇵🇨🇭",
        ],
    ),
];
