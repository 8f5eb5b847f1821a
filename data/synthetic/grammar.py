"""
Generate short children's stories from a small random grammar.

The stories let the tokenizer, training and evaluation run without a download. They are not TinyStories and are not
derived from it. They are much easier to model, because every sentence comes from a template: results on them say
nothing about TinyStories.

    python data/synthetic/grammar.py    print a few stories

A template may hold choices, "a [red|blue] kite", which can be nested, and fields, "{a} lost {a.his} {toy}". A field
is drawn from the lexicon at its first use and keeps its value until the end of the story. The file has three parts:
words, the code that fills templates, and the plots.
"""
import functools
import hashlib
import random
import re


def table(columns, text):
    """Parse the table of a plot into a list of dicts. '*' starts a row, '/' separates its columns."""
    return [dict(zip(columns.split(), map(str.strip, row.split('/')))) for row in text.split('*')[1:]]


# characters -------------------------------------------------------------------

# A main character always has the same friend, grown-up and home. So even a small model keeps the names consistent
# within a story after little training.
CASTS = table('hero kind he friend friend_kind friend_he grown_up home', '''
    * Lily / girl / she / Ben / boy / he / Mom / a small house by the sea
    * Tom / boy / he / Mia / girl / she / Grandpa / a tall house near the woods
    * Sam / boy / he / Max / boy / he / Dad / a white house on a green hill
    * Anna / girl / she / Sue / girl / she / Grandma / a yellow house next to a bakery
    * Zoe / girl / she / Tim / boy / he / Dad / a cozy house at the edge of town
    * Bella / bear / she / Finn / fox / he / Mom / a cave by the waterfall
    * Rosie / rabbit / she / Molly / mouse / she / Grandma / a burrow under the hill
    * Fred / frog / he / Daisy / hedgehog / she / Grandpa / a house of reeds by the pond
    * Pip / puppy / he / Coco / pony / she / Mom / a basket on the farm
    * Milo / monkey / he / Toby / turtle / he / Dad / a treetop in the jungle
    ''')
PRONOUNS = {'he': ('he', 'him', 'his'), 'she': ('she', 'her', 'her')}

# places and things ------------------------------------------------------------

PLACES = {  # name: (preposition, spots where something may lie, what one sees there)
    'park': ('in', 'under the slide|behind the big oak|beside the duck pond|under a green bench',
             'Ducks swam on the pond.|A man sold balloons by the gate.'),
    'beach': ('at', 'behind a big rock|under an old boat|beside a tide pool|near the lighthouse',
              'The waves rolled in and out.|White sails moved far out at sea.'),
    'backyard': ('in', 'under the porch|behind the shed|beside the birdbath|under the rose bush',
                 'Clean sheets hung on the line.|A cat slept on the fence.'),
    'meadow': ('in', 'among the daisies|behind a haystack|under a thorn bush|beside the stream',
               'Bees hummed from flower to flower.|The wind made waves in the grass.'),
    'forest': ('in', 'behind a mossy stump|under a fern|inside a hollow log|beside a fallen pine',
               'Sunlight fell through the branches.|The moss was as soft as a pillow.'),
    'orchard': ('in', 'under a pear tree|behind a wheelbarrow|beside the stone wall|in an empty basket',
                'Red apples hung on every tree.|The ripe plums smelled like jam.'),
    'hill': ('on', 'behind a tall rock|under a berry bush|beside the old windmill|next to the gate',
             'Sheep ate the green grass.|From the top, the houses looked like toys.'),
    'lake': ('by', 'under the wooden dock|behind the boathouse|among the reeds|beside a gray stone',
             'Two swans swam past.|The lake was as smooth as glass.')}
TOYS = {  # toy: (its color, what one does with it)
    'kite': ('red', 'fly it'), 'ball': ('blue', 'bounce it'), 'drum': ('yellow', 'bang on it'),
    'whistle': ('white', 'blow it'), 'top': ('green', 'spin it'), 'puppet': ('purple', 'make it talk'),
    'hoop': ('pink', 'roll it'), 'train': ('black', 'push it along'), 'robot': ('gray', 'make it march'),
    'truck': ('brown', 'drive it through the mud')}

# the lexicon: fields with the same meaning in all plots; {spot2} is another {spot} than {spot}

LEXICON = {
    'trait': 'happy|kind|clever|funny|little|young|brave|friendly',
    'hobby': '''paint pictures|sing songs|tell stories|look at the clouds|play tag|count the stars|jump in puddles|
        chase butterflies''',
    'bird': 'robin|sparrow|finch|dove',
    'tree': 'oak|birch|willow|apple',
    'flower': 'roses|daisies|tulips|violets',
    'snack': '''a slice of [apple|cherry|pumpkin] pie|a bowl of [tomato|pumpkin] soup|warm bread with
        [honey|butter]|a plate of cookies|a cup of [cocoa|warm milk]''',
    'day': '''One [sunny|warm|bright|fine] [morning|afternoon|day]|One [Monday|Friday|Sunday]|On the first day of
        [spring|summer]|One day''',
    'number': 'three|four|five|six|seven|ten',
    'small': 'shiny|little|new|pretty',
    'joy': 'did a little dance|jumped for joy|spun around|laughed out loud',
    'opening': '''Once upon a time, there was a {trait} {a.kind} named {a}. {a.He} lived in {a.home}.|{a} was a
        {trait} {a.kind} who lived in {a.home}.|In {a.home}, there lived a {trait} {a.kind} named {a}.|Once there was
        a {trait} {a.kind} named {a}.|This is the story of {a}, a {trait} {a.kind}.''',
    'fond': '{a} [loved|liked] to {hobby}.|Most of all, {a} liked to {hobby}.|{a} could {hobby} all day long.',
    'thank': '''[Thank you, {friend}!|Oh, thank you, {friend}!] [You are a good friend.|You helped me so much.|I could
        not have done it without you.|]''',
    'moral': '''{a} learned that {truth}.|That day, {a} learned that {truth}.|From then on, {a} knew that {truth}.|
        And that is how {a} learned that {truth}.''',
    'ending': '''Then {a} and {b} shared {snack}.|{a} and {b} went home side by side.|{a} and {b} played together
        until the sun went down.|{a} and {b} were [good|best] friends ever after.'''}

MOODS = {  # mood of a speech: (verbs, adverbs)
    '': ('said', ''),
    'ask': ('asked', ''),
    'sad': ('said cried', '||sadly'),
    'glad': ('said laughed cheered', '||happily|with a big smile'),
    'kind': ('said', '||gently|softly|with a smile'),
    'cross': ('said grumbled', '||with a frown')}

# templates --------------------------------------------------------------------


@functools.cache
def parse(template):
    """Parse a template into its options: each is a str, or a list of parts, each a str or a list of options."""
    template = re.sub(r'\s*\|\s*', '|', ' '.join(template.split()))
    stack = [[[]]]
    for token in re.findall(r'[\[\]|]|[^\[\]|]+', template):
        if token == '[':
            stack.append([[]])
        elif token == '|':
            stack[-1].append([])
        elif token == ']':
            options = join_plain_options(stack.pop())
            stack[-1][-1].append(options)
        else:
            stack[-1][-1].append(token)
    return join_plain_options(stack[0])


def join_plain_options(options):
    """Join the parts of options without nested choices, for speed."""
    return [''.join(parts) if all(type(part) is str for part in parts) else parts for parts in options]


@functools.cache
def parse_script(script):
    """Parse a script into a list of (starts a paragraph, is optional, speaker, mood, template)."""
    lines, new_paragraph = [], False
    for line in (' '.join(line.split()) for line in script.strip().splitlines()):
        if line:
            match = re.fullmatch(r'(\?? ?)(?:([abgh])(?: (\w+))?: )?(.*)', line)
            lines.append((new_paragraph, *match.groups('')))
        new_paragraph = not line
    return lines


class Character:
    """str() is the name; he, him, his, He and His are the pronouns."""

    def __init__(self, name, kind, he, home=''):
        self.name, self.kind, self.home = name, kind, home
        self.he, self.him, self.his = PRONOUNS[he]
        self.He, self.His = self.he.capitalize(), self.his.capitalize()

    def __str__(self):
        return self.name


class Fields(dict):
    """Values of the fields. A missing one is drawn from the lexicon and kept."""

    def __init__(self, fill):
        self.fill, self.lexicon = fill, dict(LEXICON)

    def __missing__(self, name):
        kind = name.rstrip('23')
        others = self.get(kind), self.get(kind + '2'), self.get(kind + '3')
        while (value := self.fill(self.lexicon[kind])) in others:
            pass
        self[name] = value
        return value


class Story:
    """A story in progress: its text so far and the values of its fields.

    Characters: a is the main character, b the friend, g the grown-up, h one of these two.
    """

    def __init__(self, rng):
        self.random, self.text, self.new_paragraph = rng.random, '', False
        self.fields = Fields(self.fill)
        cast = self.choice(CASTS)
        a = Character(cast['hero'], cast['kind'], cast['he'], cast['home'])
        b = Character(cast['friend'], cast['friend_kind'], cast['friend_he'])
        g = Character(cast['grown_up'], 'grown-up', 'she' if cast['grown_up'] in ('Mom', 'Grandma') else 'he')
        # a_friend and a_grown_up introduce b and g
        a_friend = f'{a.his} friend {b}' + ('' if b.kind in ('boy', 'girl') else f' the {b.kind}')
        self.fields.update(a=a, b=b, g=g, friend=b, a_friend=a_friend, a_grown_up=f'{a.his} {str(g).lower()}')
        self.set_place(self.choice(list(PLACES)))

    def choice(self, items):
        # Python guarantees the sequence of random() for later versions, but not that of choice() and sample()
        return items[int(self.random() * len(items))]

    def sample(self, items, n):
        """n different items in random order."""
        items = list(items)
        return [items.pop(int(self.random() * len(items))) for _ in range(n)]

    def set_fields(self, **templates):
        """Set templates of fields that are not drawn yet."""
        self.fields.lexicon.update(templates)

    def set_place(self, place):
        preposition, spots, sights = PLACES[place]
        self.set_fields(place=f'the {place}', at=f'{preposition} the {place}', spot=spots, sight=sights)

    def set_helper(self):
        """Let the friend or the grown-up be the helper h."""
        helper, introduction = self.choice((('b', 'a_friend'), ('g', 'a_grown_up')))
        self.fields.update(h=self.fields[helper], a_helper=self.fields[introduction])

    def expand(self, options):
        parts = options[0] if len(options) == 1 else self.choice(options)
        if type(parts) is str:
            return parts
        return ''.join([part if type(part) is str else self.expand(part) for part in parts])

    def fill(self, template):
        """Choose options and insert fields."""
        text = self.expand(parse(template))
        return text.format_map(self.fields) if '{' in text else text

    def add(self, text):
        self.text += ('\n\n' if self.new_paragraph else ' ') + text[0].upper() + text[1:]
        self.new_paragraph = False

    def speak(self, speaker, template, mood):
        """Add a speech. Its first sentence and the mood decide the verb."""
        name, words = self.fields[speaker], self.fill(template).strip()
        first, rest = re.match(r'([^.!?]*[.!?])(?: (.*))?', words).groups('')
        verbs, adverbs = MOODS['ask'] if first[-1] == '?' else MOODS[mood]
        verb = self.choice(verbs.split())
        adverb = ' ' + self.fill(adverbs) if verb == 'said' else ''
        if self.random() < 0.2:
            self.add(f'{name} {verb}{adverb}'.rstrip() + f', "{words}"')
        else:
            first = first[:-1] + ',' if first[-1] == '.' else first
            self.add(f'"{first}" {verb} {name}{adverb}'.rstrip() + '.' + (f' "{rest}"' if rest else ''))

    def tell(self, script):
        """
        Add the lines of a script. An empty line starts a new paragraph. A line is one of

            TEMPLATE
            a sad: TEMPLATE    a speech of character a, in this mood (optional)
            = TEMPLATE         the truth of the moral

        A line that starts with "? " is left out half of the time.
        """
        for new_paragraph, optional, speaker, mood, template in parse_script(script):
            self.new_paragraph |= new_paragraph
            if optional and self.random() < 0.5:
                continue
            if speaker:
                self.speak(speaker, template, mood)
            elif template[0] == '=':
                self.set_fields(truth=template[1:].strip())
                self.add(self.fill('{moral}'))
            else:
                self.add(self.fill(template))


def tidy(text):
    """Change a to an before a vowel; capitalize the start of sentences and speeches."""
    text = re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', text.strip())  # by letter, so no word may start like "unicorn"
    return re.sub(r'[.!?]\s[a-z]|\s"[a-z]', lambda match: match[0].upper(), text)


# plots ------------------------------------------------------------------------

def lost(s):
    """A toy is lost, and found with the help of a friend."""
    toy = s.choice(list(TOYS))
    color, use = TOYS[toy]
    s.set_fields(toy=toy, color=color, use=use)
    s.tell('''
        {opening}
        {a} had a {small} {color} {toy}. {a} loved to {use}. | For {a.his} birthday, {a} got a {small} {color} {toy} \
        from {a_grown_up}. {a} loved to {use}.

        {day}, {a} took the {color} {toy} to {place}. | {day}, {a} went to {place} with the {color} {toy}.
        ? {sight}
        {a} stopped to [smell the {flower}|look at a {bird}|rest in the shade]. When {a} wanted to go on, the {color} \
        {toy} was gone! | After a while, {a} fell asleep. When {a} woke up, the {color} {toy} was gone!
        a sad: [Oh no!|Oh dear!] Where is my {toy}?
        {a} looked {spot2} and {spot3}, but the {toy} was not there.

        [Just then|Soon], {a_friend} came by.
        b kind: What is wrong, {a}? | Why are you so sad, {a}?
        a sad: I lost my {color} {toy}. [I looked everywhere.|I cannot find it.]''')
    s.tell(s.choice(('''
        b kind: [Do not cry.|Cheer up, {a}!] I saw something {color} {spot}.
        {a} and {b} [ran|hurried|went] there at once.''', '''
        b kind: Where did you play before, {a}?
        a: I think I played {spot}.
        So {a} and {b} went back.''', '''
        b kind: I will help you look. | We will find it together.
        {a} and {b} looked for a long time.''')))
    s.tell('''
        There, {spot}, was the {color} {toy}! | And yes! {spot}, they found the {color} {toy}.
        a glad: {thank}

        ? {a} gave {b} a big hug. | {a} {joy}.
        = looking for something is easier with a friend | it is good to ask for help
        ? {ending}''')


def share(s):
    """Two want the same toy. Grabbing fails, sharing works."""
    toy, other = s.sample(TOYS, 2)
    color, use = TOYS[toy]
    s.set_fields(toy=toy, color=color, use=use, other=other, other_color=TOYS[other][0])
    s.tell('''
        {opening}
        ? {fond}

        {day}, {a} met {a_friend} {at}.
        ? {sight}
        {b} had a {small} {color} {toy}. {a} wanted to {use}, too.
        a: Please, {b}, may I have a turn? | Can I {use}, too? | May I play with your {toy}?''')
    s.tell(s.choice(('''
        b cross: No, it is mine. [You might break it.|I want to play alone.]
        {a} walked away and sat down {spot}. {a} was sad.

        {b} played with the {toy}, but it was no fun alone. So {b} went to {a} and held out the {color} {toy}.
        b kind: I am sorry, {a}. [It is more fun with you.|I want us to play together.] You go first.
        a glad: Oh, thank you, {b}!
        {a} and {b} took turns until [the sun went down|the stars came out].
        {b} learned that [a toy is more fun when it is shared|playing alone is no fun].''', '''
        b: [Soon.|Wait a minute.] I want to play a bit more.
        But {a} did not want to wait. {a} [grabbed|pulled at] the {toy}. Crack! The {toy} broke.
        {b} began to cry. {a} felt very bad.
        a sad: I am so sorry, {b}. I should have waited.

        {a} and {b} took the {toy} to {a_grown_up}. {g} had some glue. Soon the {toy} was whole again.
        b kind: Now it is your turn, {a}.
        {a} was very careful this time. Then {a} gave the {toy} back to {b}.
        = it is better to wait for a turn | grabbing only breaks things''', '''
        b: I am not sure. What if you do not give it back?
        {a} ran home and came back with a {other_color} {other}.
        a kind: You can play with my {other}, and I can play with your {toy}.
        {b} liked that. {a} played with the {color} {toy}, and {b} played with the {other_color} {other}.

        When the sun was low, {a} gave back the {toy} and {b} gave back the {other}.
        b glad: [That was fun, {a}!|That was a good idea, {a}!] Let us do it again tomorrow.
        = sharing makes two happy | it is good to give something, too
        ? {ending}''')))


RESCUES = table('where animal trouble sound plan act after', '''
    * orchard / baby {bird} / It had fallen out of its nest in the {tree} tree. / Cheep, cheep! / We need a ladder. /
        {b} held the ladder. {a} climbed up and put the baby {bird} back in the nest. / The next morning, the mother
        {bird} sang a song for {a}.
    * forest / kitten / It sat high up in the {tree} tree and could not get down. / Mew, mew! / Let us lean a plank on
        the branch. / {a} and {b} put up a long plank. Step by step, the kitten came down. / After that, the kitten
        followed {a} everywhere.
    * meadow / lamb / Its wool was caught in a thorn bush. / Baa, baa! / I will bend the branches, and you free the
        wool. / {b} bent the branches. {a} pulled at the wool until the lamb was free. / The lamb ran back to its
        mother.
    * lake / duckling / It had slipped into a deep hole and could not climb out. / Peep, peep! / We can put a board
        into the hole. / {a} and {b} pushed a board into the hole. Step by step, the duckling came up. / The mother
        duck came with {number} more ducklings.
    ''')


def rescue(s):
    """A small animal needs help."""
    s.set_fields(**s.choice(RESCUES))
    s.set_place(s.fill('{where}'))
    s.tell('''
        {opening}
        ? {fond}

        {day}, {a} and {a_friend} [went to {place}|played {at}].
        ? {sight}
        Suddenly {a} heard something. "{sound}" It was a {animal}. {trouble}
        a sad: [Oh, you poor thing!|Poor little {animal}!|Look, {b}, it needs help!] We have to do something!
        b: [You are right, {a}.|I have an idea.] {plan}
        a kind: Do not be afraid, little {animal}. [We will help you.|You are safe with us.]

        {act}
        b glad: We did it, {a}! | You did it, {a}! | It worked!
        {a} was so happy that {a.he} {joy}. | {a} felt warm inside.
        {after}
        ? a glad: {thank}
        = even small ones need help sometimes | it is good to stop and help | a little kindness can be a big thing
        ? {ending}''')


BUILDS = table('where thing parts work disaster better', '''
    * beach / sandcastle / wet sand and shells / They filled a bucket with sand and turned it over, again and again. /
        A big wave washed the sandcastle away. / build it far from the water
    * backyard / tree house / boards and nails / They hammered until their arms were tired. / Crack! The tree house
        fell down. / put thick beams under the floor
    * forest / hut / branches and moss / They stacked branch on branch and filled the gaps with moss. / It rained, and
        the roof of the hut fell in. / make the roof steep
    * park / tower / blocks and boxes / It grew and grew until it was very tall. / A ball hit the tower, and the tower
        fell down. / make it wide at the bottom
    ''')


def build(s):
    """Something is built, breaks, and is built better."""
    s.set_fields(**s.choice(BUILDS))
    s.set_place(s.fill('{where}'))
    s.tell('''
        {opening}
        {a} had a plan. {a} wanted to build a {thing}. | More than anything, {a} wanted to build a {thing}.

        {day}, {a} and {a_friend} met {at}.
        ? {sight}
        a glad: [Will you help me build a {thing}, {b}?|Let us build a {thing}, {b}!] We need {parts}.
        b glad: I would love to! | What a good idea, {a}! | Let us start right now!
        {work} At last, the {thing} was [ready|done].

        But then something happened. {disaster}''')
    s.tell(s.choice(('''
        a cross: It is your fault, {b}!
        {b} turned away and said nothing. {a} saw it and felt sorry.
        a sad: I did not mean that, {b}. Can you forgive me?
        b kind: It is all right, {a}. Let us try again. We can {better}.''', '''
        a sad: All our work is gone. | I want to give up.
        b kind: [Do not give up, {a}.|Cheer up, {a}.] [This time we will|We can] {better}.''')))
    s.tell('''
        So {a} and {b} [began again|started over]. This time the {thing} [held|did not break].

        a glad: {thank}
        {a} {joy}. | {a} and {b} looked at the {thing} and smiled.
        = a thing that breaks can be built again | it is too soon to give up after one try
        ? {ending}''')


PLANTS = table('seed plant ripe made', '''
    * sunflower seed / sunflower / was a big yellow sunflower / there were seeds for all the birds
    * pumpkin seed / pumpkin / was a fat orange pumpkin / they baked a pumpkin pie
    * bean / bean plant / were long green beans / they cooked a pot of bean soup
    * tomato seed / tomato plant / were round red tomatoes / they cooked a pot of tomato soup
    ''')


def garden(s):
    """Waiting for a plant takes patience."""
    s.set_fields(**s.choice(PLANTS))
    s.tell('''
        {opening}
        ? {fond}

        {day}, {a_grown_up} gave {a} a {seed}.
        g kind: Put it in the ground, {a}, and water it every day. One day it will be a {plant}.
        {a} dug a [small|deep] hole and put in the {seed}.

        The next morning, {a} ran to look. There was nothing. {a} looked every day. Still nothing!
        a ask: Why does it not grow, {g}? | When will it come up, {g}?
        g kind: [It needs time, {a}.|Be patient, {a}.|Just wait, {a}.] Good things are slow.''')
    s.tell(s.choice(('''
        But {a} could not wait. {a} took a spoon and dug up the {seed}. There was a tiny white root!
        g kind: Oh, {a}! Now it has to start again.
        {a} put it back, and this time {a} left it alone.''', '''
        At last a green tip came up. But one morning, a snail had eaten half of a leaf.
        {a_friend} came by. {b} helped {a} to carry the snail away.''', '''
        Then it got hot, and there was no rain for {number} days.
        {a_friend} came by. Every evening, {a} and {b} carried water from the well.''')))
    s.tell('''
        Days went by, and {a} waited. | The sun shone, the rain fell, and {a} waited.

        And then, one morning, there {ripe}!
        a glad: Look, {g}! It is here! | Come and see, {g}! | It really grew!
        {a} {joy}. In the end, {made}.
        g kind: [You waited, {a}, and it was worth it.|You took good care of it, {a}.]
        = good things take time | waiting can be worth it | a bit of care every day makes things grow''')


SKILLS = table('skill fails tip success', '''
    * ride a bike / fell over and hurt {a.his} knee / Look where you want to go, and keep your feet moving. / {a} rode
        the bike all the way down the road
    * swim / swallowed water and coughed / Blow bubbles first, and kick with long legs. / {a} swam all the way to the
        other side
    * climb a tree / slid down and landed on the ground / Hold on with both hands, and move one foot. / {a} sat at the
        top of the {tree} tree
    * catch a ball / closed both eyes, and the ball fell down / Watch the ball all the way. / {a} held the ball in both
        hands
    ''')


def skill(s):
    """Something is too hard at first. Practice helps."""
    s.set_helper()
    s.set_fields(**s.choice(SKILLS))
    s.tell('''
        {opening}
        More than anything, {a} wanted to {skill}. | All of the others could {skill}, but {a} could not.

        {day}, {a} tried it. But {a} {fails}. {a} tried again, and it went wrong again.
        a sad: [I am too small.|I will never learn it.|It is too hard.] I give up!

        {a_helper} [saw it|came by] and sat down beside {a}.
        h kind: What is wrong, {a}? | Why are you so sad, {a}?
        a sad: I want to {skill}, but I cannot do it.
        h kind: I could not do it at first, either. [Here is a trick, {a}.|I will tell you a trick, {a}.] {tip}
        So {a} practiced every day. {h} helped {a}. | Every day, {a} practiced with {h}.

        And then, one day, it worked. {success}!
        a glad: I can do it, {h}! | Did you see that, {h}? | Look, {h}, look!
        {h} clapped and cheered. | {a} {joy}. | {h} hugged {a}.
        = practice makes hard things easy | nobody can do everything at first | one more try can make the difference''')


PLOTS = lost, share, rescue, build, garden, skill


def generate_stories(seed=1337, count=24000):
    """Yield count different stories. With the same seed, a smaller count gives the first of them."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        story = Story(rng)
        story.choice(PLOTS)(story)
        text = tidy(story.text)
        key = hashlib.sha1(text.encode()).digest()
        if 80 <= len(text.split()) <= 250 and key not in seen:
            seen.add(key)
            yield text


if __name__ == '__main__':
    for text in generate_stories(random.randrange(10**6), 5):
        print(text, end='\n\n' + 79 * '-' + '\n\n')
