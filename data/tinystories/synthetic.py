"""
A synthetic stand-in for TinyStories: short children's stories made by a small seeded grammar.

It exists so that the tokenizer, the training loop and the evaluation all run without a download.
It is not TinyStories and was not derived from it: a loss or a sample measured here says nothing
about the real data set. The language is much easier, because every sentence comes from a template.

How it is written: a template may hold choices, "a [red|blue] kite", which nest, and fields,
"{a} lost {a.his} {toy}". A field is drawn from the lexicon when it is first named and then stays for
the rest of the tale; that keeps toy, place and friend the same from beginning to end. Words by class
come first, then the machine, then each plot: a table of what may happen and the script that tells it.

$ python data/tinystories/synthetic.py     # prints a few stories
"""
import functools
import hashlib
import random
import re


def table(columns, text):
    """The rows of a plot's table: each starts with '*', its columns are split by '/'."""
    return [dict(zip(columns.split(), map(str.strip, row.split('/')))) for row in text.split('*')[1:]]


# -----------------------------------------------------------------------------
# who

BOYS = '''Tom Ben Sam Max Leo Finn Jack Tim Noah Luke Adam Owen Eli Theo Oscar Hugo Felix Ravi Omar Kofi
    Diego Mateo Jamal Kenji Milo Jonas Peter Harry Henry Charlie Billy Danny Toby Joey Rory Ivan Marco Ali
    Andre Otis Walter Simon Caleb Miles Nico Arthur Pedro Lars Sanjay Bobby'''.split()
GIRLS = '''Lily Mia Sue Anna Emma Zoe Ella Lucy Sara Kate Jane Molly Amy Rosa Nina Maya Leila Priya Aisha
    Yuki Mei Sofia Elena Clara Alice Ruby Hazel Ivy Nora Tess Wendy Betty Dora Polly Sally Hannah Abby Chloe
    Julia Carmen Fatima Naomi Ines Greta Mabel Freya Olga Tara Penny Lena'''.split()
HE_PETS = '''Bruno Pip Rusty Biscuit Barnaby Waffles Chester Nibbles Basil Tumble Button Ziggy Boris Fergus
    Monty Bumble Dusty Pickle Scout Patch Gus Rolo Wiggles Sprout Benji Rufus'''.split()
SHE_PETS = '''Daisy Pepper Poppy Honey Willow Clover Maple Olive Bella Cookie Dot Tulip Blossom Mitzi Ginger
    Pearl Fern Twinkle Dolly Hattie Marigold Coco Peaches Pumpkin Juniper Trixie'''.split()
GROWN_UPS = {'Mom': True, 'Dad': False, 'Grandma': True, 'Grandpa': False,      # name: is she a woman?
             'Aunt Rose': True, 'Uncle Joe': False, 'Aunt May': True, 'Uncle Bill': False}   # children only

ANIMALS = {     # kind: (home, favorite food, what it does for joy)
    'rabbit': ('a burrow under the hill', 'carrots', 'hopped in a circle'),
    'bear': ('a cave by the waterfall', 'honey', 'danced on two legs'),
    'fox': ('a den among the ferns', 'blackberries', 'swished {a.his} bushy tail'),
    'mouse': ('a hole behind the mill', 'cheese', 'squeaked with delight'),
    'squirrel': ('a nest in a hollow oak', 'acorns', 'ran up a tree and down again'),
    'hedgehog': ('a heap of dry leaves', 'mushrooms', 'rolled into a happy ball'),
    'frog': ('a house of reeds by the pond', 'berry soup', 'gave a great big croak'),
    'duck': ('a nest by the water', 'corn', 'quacked with delight'),
    'kitten': ('a basket in the barn', 'cream', 'purred like a little motor'),
    'puppy': ('a kennel on the farm', 'biscuits', 'wagged {a.his} tail'),
    'piglet': ('a sty full of straw', 'turnips', 'oinked and rolled over'),
    'lamb': ('a barn on the moor', 'clover', 'skipped from side to side'),
    'goat': ('a shed on the mountain', 'cabbage leaves', 'kicked up {a.his} heels'),
    'pony': ('a stable by the road', 'oats', 'galloped around once'),
    'turtle': ('a nook between two stones', 'lettuce', 'did a slow little dance'),
    'beaver': ('a lodge on the river', 'pears', 'slapped {a.his} flat tail'),
    'raccoon': ('a hollow log', 'plums', 'clapped {a.his} paws'),
    'badger': ('a snug tunnel', 'hazelnuts', 'drummed on {a.his} tummy'),
    'mole': ('a room under the lawn', 'radishes', 'wiggled {a.his} pink nose'),
    'otter': ('a den on the riverbank', 'watercress', 'slid down the bank and laughed'),
    'deer': ('a clearing in the woods', 'sweet grass', 'leaped over a bush'),
    'chipmunk': ('a crack in an old wall', 'walnuts', 'puffed out {a.his} cheeks'),
    'monkey': ('a treetop in the jungle', 'bananas', 'swung from a branch'),
    'elephant': ('a valley of tall grass', 'melons', 'lifted {a.his} trunk and trumpeted'),
    'panda': ('a bamboo grove', 'green bamboo', 'turned a somersault'),
    'koala': ('the fork of a gum tree', 'juicy leaves', 'gave a wide and sleepy smile'),
    'lion cub': ('a den under the rocks', 'stew', 'gave a tiny roar'),
    'donkey': ('a field behind the inn', 'hay', 'brayed as loudly as a trumpet')}
HOUSE = '''a [small|tall|narrow|white|yellow|brick|stone|wooden|crooked|cozy] [house|cottage] [by the sea|near
    the woods|at the end of a quiet street|on a green hill|next to a bakery|across from the library|behind the
    church|at the edge of town|in a small village|beside the railway|near the harbor|with a [blue|red|green]
    door|with roses around the door]'''

# -----------------------------------------------------------------------------
# where: name: (preposition, k for children only, where a thing may lie, what one sees)

PLACES = {
    'park': ('in', 'k', '''under the slide|behind the big oak|beside the duck pond|under a green bench|next to
        the fountain|in the long grass by the gate''', '''Ducks paddled on the pond.|A man was selling
        balloons by the gate.|Two old ladies fed the pigeons.|A brass band was playing.|A gray squirrel ran
        along the fence.'''),
    'beach': ('at', 'k', '''behind a big rock|under an upturned boat|beside a tide pool|in a heap of seaweed|
        near the lighthouse|under the pier''', '''Seagulls cried above the waves.|Tiny shells lay everywhere.|
        A crab walked sideways over the sand.|White sails moved far out at sea.|The air smelled of salt.'''),
    'playground': ('at', 'k', '''under the seesaw|behind the swings|in the sandbox|beside the climbing frame|
        inside the little tunnel|under the monkey bars''', '''The swings went up and down.|Some big boys were
        playing soccer.|A baby laughed in a stroller.|Someone had drawn a chalk snail on the ground.'''),
    'farm': ('on', 'k', '''behind the barn|under the tractor|in the hayloft|beside the chicken coop|next to
        the water trough|in the pumpkin patch''', '''Brown cows chewed their grass.|A rooster stood on the
        roof.|Fat hens scratched in the dust.|The hay smelled sweet.|A sheepdog barked at the geese.'''),
    'backyard': ('in', 'k', '''under the porch|behind the shed|beside the birdbath|under the rose bush|inside
        the watering can|behind the flowerpots''', '''Clean sheets flapped on the clothesline.|A snail crept
        up the wall.|Next door, somebody was mowing the lawn.|A tabby cat slept on the fence.'''),
    'campground': ('at', 'k', '''under the picnic table|behind the tent|beside the campfire|inside a sleeping
        bag|next to the canoe|behind the woodpile''', '''Smoke curled up from the campfire.|The tents looked
        like small hills.|Somewhere, a guitar was playing.|Pine needles covered the ground.'''),
    'meadow': ('in', '', '''among the daisies|behind a haystack|under a thorn bush|beside the stream|next to
        an anthill|in the tall clover''', '''Bees hummed from flower to flower.|Grasshoppers chirped in the
        grass.|The wind made waves in the grass.|Poppies nodded in the breeze.'''),
    'forest': ('in', '', '''behind a mossy stump|under a fern|inside a hollow log|beside a fallen pine|between
        the roots of an old beech|under a heap of leaves''', '''Sunlight fell through the branches.|A
        woodpecker tapped on a trunk.|The moss was as soft as a pillow.|Red mushrooms grew in a ring.|It
        smelled of earth and pine.'''),
    'riverbank': ('on', '', '''among the reeds|under the little bridge|behind a willow tree|between two wet
        stones|beside an old rowboat|in the soft mud''', '''Small fish flashed in the water.|A heron stood on
        one leg.|The river bubbled over the stones.|Blue dragonflies darted here and there.'''),
    'orchard': ('in', '', '''under a pear tree|behind a wheelbarrow|in an empty basket|beside the stone wall|
        at the foot of a ladder|behind the beehives''', '''Red apples shone on every tree.|The ripe plums
        smelled like jam.|Wasps buzzed around the fallen fruit.|A blackbird pecked at a cherry.'''),
    'hill': ('on', '', '''behind a tall rock|under a bramble bush|beside the old windmill|in a patch of
        heather|next to the broken gate|in a dip in the ground''', '''Sheep grazed on the slope.|From the top,
        the houses looked like toys.|The wind was cool and fresh.|A hawk sailed high in the sky.'''),
    'lake': ('by', '', '''under the wooden dock|behind the boathouse|among the cattails|beside a gray boulder|
        inside an old canoe|under a birch tree''', '''Two swans glided past.|Water lilies floated near the
        shore.|The lake was as smooth as glass.|A fish jumped and went back with a splash.''')}

# -----------------------------------------------------------------------------
# what

TOYS = {    # toy: what one does with it
    'kite': 'fly it', 'ball': 'bounce it', 'doll': 'sing to it', 'teddy bear': 'hug it',
    'train': 'push it along', 'truck': 'fill it with pebbles', 'drum': 'bang on it', 'whistle': 'blow it',
    'top': 'spin it', 'puppet': 'make it talk', 'jump rope': 'jump over it', 'hoop': 'roll it',
    'boat': 'float it in a puddle', 'frisbee': 'throw it', 'flute': 'play songs on it', 'horn': 'toot it',
    'robot': 'make it march', 'dinosaur': 'make it stomp', 'rocket': 'count down for it', 'bucket': 'fill it',
    'crown': 'play castle with it', 'wand': 'do magic with it', 'bell': 'ring it', 'yo-yo': 'swing it',
    'lantern': 'send signals with it', 'marble': 'roll it', 'telescope': 'look through it',
    'storybook': 'read it', 'pinwheel': 'hold it up in the wind', 'airplane': 'make it swoop',
    'rattle': 'shake it', 'tambourine': 'shake it', 'paintbrush': 'paint with it', 'spaceship': 'launch it',
    'magnet': 'pick up nails with it', 'parachute': 'drop it from the wall', 'xylophone': 'tap on it',
    'tractor': 'drive it through the mud', 'zebra': 'let it graze', 'camera': 'take pictures with it'}
CLOTHES = {     # things that get lost as easily: where they are worn
    'hat': 'on {a.his} head', 'scarf': 'around {a.his} neck', 'cap': 'on {a.his} head',
    'cape': 'over {a.his} shoulders', 'ribbon': 'around {a.his} neck', 'bow tie': 'under {a.his} chin',
    'backpack': 'on {a.his} back', 'bandana': 'around {a.his} neck', 'sash': 'around {a.his} waist'}

LEXICON = {     # what a field means until a plot says otherwise; {hue2} is another {hue}
    'hue': 'red|blue|green|yellow|orange|purple|pink|brown|white|black|silver|golden',
    'trait': '''cheerful|kind|curious|clever|gentle|playful|friendly|happy|little|young|lively|quiet|merry|
        bright|funny|busy|sweet|thoughtful|dreamy|polite''',
    'hobby': '''paint pictures|sing songs|draw maps|tell stories|look at the clouds|make up riddles|play tag|
        help in the kitchen|dance in the rain|collect pebbles|pick wildflowers|watch the trains go by|roll
        down hills|play hide-and-seek|hear about pirates|count the stars|jump in puddles|blow bubbles|chase
        butterflies|pretend to be a [knight|sailor|wizard|captain|king|giant|dragon|farmer|doctor]|ask
        questions|do puzzles|bake bread|build little bridges|listen to the wind|skip stones|dig for treasure|
        make crowns of leaves|whistle|tell jokes|swing on the gate|splash in the bath''',
    'fruit': '''apple|pear|peach|plum|cherry|banana|orange|grape|strawberry|blueberry|raspberry|blackberry|
        mango|melon|apricot|fig|coconut|pineapple|kiwi|gooseberry''',
    'snack': '''a slice of [apple|cherry|peach|pumpkin|blueberry|plum|lemon] pie|a bowl of [tomato|pumpkin|
        noodle|onion|pea|potato|carrot|lentil|mushroom] soup|warm bread with [honey|butter|plum jam|cheese|
        jelly]|a plate of [oatmeal|ginger|chocolate|raisin|almond|butter] cookies|a [banana|corn|bran|honey]
        muffin|pancakes with [syrup|jam|berries|cream]|a cup of [cocoa|warm milk|apple juice|mint tea|
        lemonade]|[peanut butter|egg|cucumber|cheese|radish] sandwiches|a dish of [vanilla|strawberry|
        pistachio|caramel] ice cream|a [sticky|sugar|cinnamon] bun|a handful of [nuts|raisins|grapes|dates|
        popcorn]|hot waffles|a crunchy pretzel|a baked potato|rice pudding|a tart with [apricots|figs|
        cherries]''',
    'meal': '''porridge with [raisins|honey|nuts|cinnamon]|scrambled eggs|toast and [jam|marmalade|jelly]|
        cereal with milk|a boiled egg|yogurt with [blueberries|peaches|kiwi|mango]|rice with beans|a [bagel|
        roll] with butter|two [oranges|bananas|apricots|pears]|a big bowl of oats''',
    'bird': '''robin|sparrow|crow|finch|thrush|blackbird|bluebird|dove|wren|cuckoo|jay|swallow|magpie|lark|
        starling''',
    'tree': 'oak|birch|willow|pine|maple|apple|chestnut|cherry|walnut|fir|poplar|cedar|elm',
    'flower': '''roses|daisies|tulips|violets|lilies|poppies|bluebells|daffodils|buttercups|pansies|
        dandelions|snowdrops|primroses|irises|peonies|geraniums''',
    'bug': 'butterflies|bees|dragonflies|ladybugs|beetles|moths|gnats|bumblebees',
    'pocket': '''a smooth pebble|a bit of string|a pencil stub|an acorn|a penny|a blue feather|a rubber band|a
        snail shell|a piece of chalk|a rusty key|a pine cone|a cork|a glass bead|a postage stamp|a paper clip|
        a lucky coin|a peppermint|a shiny button|a wooden spool|a ticket stub''',
    'morning': '''One [sunny|warm|bright|quiet|fine|lovely|mild|windy] morning|One [Monday|Tuesday|Wednesday|
        Thursday|Friday|Saturday|Sunday]|On the first day of [spring|summer|vacation|May|June]|Early one
        morning|One day''',
    'day': '{morning}|{morning}|One [sunny|warm|bright|quiet|fine|lovely] [afternoon|day]',
    'number': 'three|four|five|six|seven|eight|nine|ten|eleven|twelve',
    'dream': '''a [flying|golden|dancing|giant|sleepy] [whale|pony|boat|carrot|elephant|teapot|castle|goose|
        pancake]|a [river|mountain|house|ship] made of [chocolate|sugar|candy|gingerbread|jelly|feathers]|the
        moon and the stars''',
    'likes': '''pancakes|popcorn|ice cream|hot waffles|[apple|cherry|pumpkin|peach] pie|[noodle|tomato|onion]
        soup|[ginger|oatmeal|chocolate] cookies|rice pudding|baked potatoes|spaghetti|pizza|cheese
        sandwiches''',
    'pest': 'slug|snail|caterpillar',
    'prize': 'golden cup|blue ribbon|silver medal|big trophy|box of candy',
    'small': 'shiny|little|new|old|pretty|striped|spotted|lovely',
    # sentences that all plots share
    'opening': '''Once upon a time, there was a {trait} {a.kind} named {a}. {a.He} lived in {a.home}.|{a} was
        a {trait} {a.kind} who lived in {a.home}.|In {a.home}, there lived a {trait} {a.kind} named {a}.|There
        once was a {trait} {a.kind} called {a}.|Once there was a {trait} {a.kind}. {a.His} name was {a}.|Not
        so long ago, a {trait} {a.kind} named {a} lived in {a.home}.|This is the story of {a}, a {trait}
        {a.kind}.|Everyone knew {a}, the {trait} {a.kind} from {a.home}.''',
    'fond': '''{a} [loved|liked] to {hobby}.|{a} [loved|liked] to {hobby} and to {hobby2}.|Most of all, {a}
        liked to {hobby}.|{a} could {hobby} all day long.|What {a} liked best to eat was {likes}.''',
    'thank': '''[Thank you, {t}!|Thank you so much, {t}.|Oh, thank you, {t}!] [You are a good friend.|You
        helped me so much.|I could not have done it without you.|I am so lucky to have you.|]''',
    'moral': '''{a} [learned|had learned|found out] that {truth}.|That day, {a} learned that {truth}.|From
        then on, {a} knew that {truth}.|{a} never forgot that {truth}.|Now {a} knew that {truth}.|And that is
        how {a} learned that {truth}.|In bed that night, {a} thought, "{truth}."''',
    'bye': '''Then {a} and {b} [shared|had] {snack3}.|{a} and {b} went home side by side.|{a} and {b}
        [laughed|played|sang] together until the sun went down.|{a} and {b} were [good|best|close] friends
        [ever after|from that day on].|
        After so much [fun|excitement], {a} slept [well|soundly] and dreamed of {dream}.'''}

ASIDES = (      # colour, told once in a tale at most
    'A {bird} [sang|whistled|called|chirped] in the {tree} tree.', 'The {flower} were in bloom.',
    '[Two|Three|Four|Five|Six|Seven] {bug} [danced|flew|whirled] through the air.',
    'The sun was [warm|bright|golden|shining].', 'The sky was [blue|clear|as blue as paint].',
    '[Small|White|Fluffy|Puffy] clouds [drifted|sailed|floated] [by|across the sky|overhead].',
    'A [soft|gentle|light|cool|warm] breeze [shook|rustled|stirred] the leaves.',
    'A [spider|caterpillar|snail|lizard|worm|beetle] [sat|rested] on a green leaf.',
    'The air smelled of [{flower}|fresh grass|warm bread|mint|hay|rain|wild thyme|lavender|pine].',
    '{a} counted {number} [sparrows|snails|clouds|crows|{flower}|ants|pigeons].',
    '''{a} hummed a [little|merry|silly|happy] tune about a [{bird}|whale|camel|goose|dancing pig|polar bear|
        tiger|kangaroo|hippo|walrus|sleepy cow|giraffe|penguin|purple cat|dolphin|parrot|flea].''')
ASIDES_K = ASIDES + (       # children wear clothes and have pockets
    '{a} wore a {hue2} [sweater|jacket|coat|shirt|vest] and {hue3} [boots|sneakers|shoes|sandals|socks].',
    '''{a} had on {a.his} [striped|spotted|checkered|knitted|woolen|warm] [sweater|socks|shirt|vest|mittens|
        pants].''',
    'In {a.his} pocket, {a} carried {pocket} and {pocket2}.',
    '{a} had eaten {meal} for breakfast.',
    '''That morning, {a} had [brushed {a.his} teeth|combed {a.his} hair|tied {a.his} shoes|made {a.his} bed|
        buttoned {a.his} coat] all alone.''')

MOODS = {   # mood: (verbs, how it is said or asked, what one does before speaking)
    '': ('said', '', '{x} looked at {y}.'),
    'ask': ('asked', '||with a puzzled look', '{x} [looked up|tilted {x.his} head|blinked|looked at {y}].'),
    'sad': ('said sobbed sniffed sighed', '||sadly|in a small voice',
            '{x} [looked at the ground|wiped {x.his} eyes|hung {x.his} head|began to cry].'),
    'glad': ('said cried laughed cheered', '||happily|with a big smile',
             '{x} [smiled|laughed|grinned|beamed|clapped|jumped up and down].'),
    'kind': ('said', '||gently|kindly|softly|with a warm smile',
             '{x} [smiled|nodded|sat down close by|gave {y} a hug|patted {y} on the back].'),
    'shy': ('said whispered mumbled', '||softly|shyly', '{x} [blushed|took a deep breath|swallowed].'),
    'cross': ('said grumbled snapped growled', '||with a frown',
              '{x} [frowned|stamped {x.his} foot|crossed {x.his} arms|made a face|shook {x.his} head].'),
    'scared': ('whispered said gasped', '||with wide eyes',
               '{x} [trembled|shivered|stood very still|held {x.his} breath].'),
    'think': ('said', '|slowly|thoughtfully',
              '{x} [thought for a moment|thought about it|scratched {x.his} head|nodded].')}

# -----------------------------------------------------------------------------
# the machine


@functools.cache
def parse(template):
    """Nested lists: a template is a list of options, an option a list of parts, a part text or a template."""
    template = re.sub(r'\s*\|\s*', '|', ' '.join(template.split()))
    stack = [[[]]]
    for token in re.findall(r'[\[\]|]|[^\[\]|]+', template):
        if token == '[':
            stack.append([[]])
        elif token == '|':
            stack[-1].append([])
        elif token == ']':
            part = plain(stack.pop())
            stack[-1][-1].append(part)
        else:
            stack[-1][-1].append(token)
    return plain(stack[0])


def plain(options):
    """Options without choices of their own become text, for speed."""
    return [''.join(parts) if all(type(part) is str for part in parts) else parts for parts in options]


@functools.cache
def steps(script):
    """(paragraph?, maybe?, speaker, listener, mood, template) for each line of a script."""
    lines, paragraph = [], False
    for line in (' '.join(line.split()) for line in script.strip().splitlines()):
        if line:
            match = re.fullmatch(r'(\?? ?)(?:([abcgh])(?:>([abcgh]))?(?: (\w+))?: )?(.*)', line)
            lines.append((paragraph, *match.groups('')))
        paragraph = not line
    return lines


class Who:
    """Someone in a tale: str() is the name; he, him, his, He and His are the pronouns."""

    def __init__(self, name, kind, female, home='', food='', joy=''):
        self.name, self.kind, self.home, self.food, self.joy = name, kind, home, food, joy
        self.he, self.him, self.his = ('she', 'her', 'her') if female else ('he', 'him', 'his')
        self.He, self.His = self.he.capitalize(), self.his.capitalize()

    def __str__(self):
        return self.name


class Words(dict):
    """The words in play. One that is not there yet is drawn from the lexicon, and stays."""

    def __init__(self, fill):
        self.fill, self.lexicon = fill, dict(LEXICON)

    def __missing__(self, name):
        kind = name.rstrip('23')
        others = self.get(kind), self.get(kind + '2'), self.get(kind + '3')
        while (word := self.fill(self.lexicon[kind])) in others:
            pass
        self[name] = word
        return word


class Tale:
    """A tale in the making: its text so far and the words in play, `w`."""

    def __init__(self, rng):
        self.random, self.text = rng.random, ''
        self.w = Words(self.fill)
        self.world = 'k' if self.random() < 0.6 else 'n'        # children, or animals that talk
        self.airy = self.random() < 0.5                         # a new paragraph for each speaker?
        self.paragraph = False                                  # does the next sentence open one?
        self.partner = 'b'                                      # whom a answers

    def pick(self, seq):
        # random() is the one draw that Python promises to keep the same in later versions
        return seq[int(self.random() * len(seq))]

    def take(self, seq, n):
        """n different items, in random order."""
        seq = list(seq)
        return [seq.pop(int(self.random() * len(seq))) for _ in range(n)]

    def expand(self, options):
        parts = options[0] if len(options) == 1 else self.pick(options)
        if type(parts) is str:
            return parts
        return ''.join([part if type(part) is str else self.expand(part) for part in parts])

    def fill(self, template):
        text = self.expand(parse(template))
        return text.format_map(self.w) if '{' in text else text

    def let(self, **words):
        """Say what fields stand for, from here on."""
        self.w.lexicon.update(words)

    def row(self, rows):
        """Let the fields be a row of the table that suits this world."""
        self.let(**self.pick([row for row in rows if row.get('world', '-') in ('-', self.world)]))

    def settle(self, place):
        """Let the tale happen at this place."""
        preposition, _, spots, sights = PLACES[place]
        self.let(place=f'the {place}', at=f'{preposition} the {place}', spot=spots, sight=sights)

    def add(self, text):
        self.text += ('\n\n' if self.paragraph else ' ') + text[0].upper() + text[1:]
        self.paragraph = False

    def talk(self, speaker, listener, words, mood):
        """The first sentence and the mood choose the verb."""
        x, self.w['x'], self.w['y'] = self.w[speaker], self.w[speaker], self.w[listener]
        self.partner = listener if speaker == 'a' else speaker
        words = self.fill(words).strip()
        first, rest = re.match(r'([^.!?]*[.!?])(?: (.*))?', words).groups('')
        verbs, how, beat = MOODS[(mood or 'ask') if first[-1] == '?' else mood]
        if first[-1] == '?':
            verbs = 'asked'
        elif first[-1] == '!' and mood in ('', 'sad', 'scared'):
            verbs = 'cried said'
        verb = self.pick(verbs.split())
        how = ' ' + self.fill(how) if verb in ('said', 'asked') else ''
        self.paragraph |= self.airy
        form = self.random()
        if form < 0.15 and (beat := self.fill(beat)) not in self.text:      # nobody does the same thing twice
            self.add(f'{beat} "{words}"')
        elif form < 0.35:
            self.add(f'{x} {verb}{how}'.rstrip() + f', "{words}"')
        else:
            first = first[:-1] + ',' if first[-1] == '.' else first
            self.add(f'"{first}" {verb} {x}{how}'.rstrip() + '.' + (f' "{rest}"' if rest else ''))
        self.paragraph = self.airy

    def tell(self, script):
        """
        Each line of a script is one beat, an empty line a new paragraph. A line tells its template;
        'a sad: ...' has a speak, sadly, to who spoke last, 'a>c: ...' to c; '? ...' is told half of the time,
        '*' looks around at the place, '+' adds some other colour, and '= ...' draws the moral.
        """
        for paragraph, maybe, speaker, listener, mood, text in steps(script):
            self.paragraph |= paragraph
            if maybe and self.random() < 0.5:
                continue
            if speaker:
                self.talk(speaker, listener or (self.partner if speaker == 'a' else 'a'), text, mood)
            elif text in '*+':
                if text == '*' and self.random() < 0.5:
                    self.add(self.fill('{sight}'))
                if self.random() < 0.5:
                    self.add(self.fill(self.pick(ASIDES_K if self.world == 'k' else ASIDES)))
            elif text[0] == '=':
                self.let(truth=text[1:].strip())
                self.add(self.fill('{moral}'))
            else:
                self.add(self.fill(text))


def tidy(text):
    """a -> an before a vowel sound, and capitals at the start of sentences and speeches."""
    text = re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', text.strip())     # so no unicorns in the tables
    return re.sub(r'[.!?]\s[a-z]|\s"[a-z]', lambda m: m[0].upper(), text)


def cast(rng):
    """A tale with its people and a place: a is the hero, b and c are others, g is a grown-up."""
    s = Tale(rng)
    boys, girls = (s.take(names, 3) for names in ((BOYS, GIRLS) if s.world == 'k' else (HE_PETS, SHE_PETS)))
    for role, kind in zip('abc', s.take(ANIMALS, 3)):
        female = s.random() < 0.5
        name = (girls if female else boys).pop()
        s.w[role] = (Who(name, 'girl' if female else 'boy', female, s.fill(HOUSE)) if s.world == 'k'
                     else Who(name, kind, female, *ANIMALS[kind]))
    g = s.pick(list(GROWN_UPS)[:8 if s.world == 'k' else 4])
    s.w['g'] = Who(g, 'grown-up', GROWN_UPS[g])
    s.w['t'] = s.w['b']     # whom one thanks
    a = s.w['a']
    s.let(gg=f'{a.his} {g[0].lower()}{g[1:]}',      # how they are first called: his grandma, her friend Pip
          bb='{a.his} friend {b}' if s.world == 'k' else '{a.his} friend {b} the {b.kind}',
          cc='a {c.kind} named {c}',
          joy='did a little dance|clapped {a.his} hands|turned a cartwheel|spun around|jumped for joy')
    if s.world == 'n':
        s.let(likes=a.food, joy=a.joy)
    s.settle(s.pick([place for place in PLACES if PLACES[place][1] in ('', s.world)]))
    return s


def helper(s):
    """h, who helps with a hard thing, is the friend or the grown-up."""
    who = s.pick('bg')
    s.w['h'], s.w['hh'] = s.w[who], s.w[who * 2]


# -----------------------------------------------------------------------------
# the plots


def lost(s):
    """A treasure is lost, and found in the place that the helper knows."""
    toy = s.pick(list(TOYS) + list(CLOTHES))
    if toy in TOYS:
        s.let(use=TOYS[toy], care='{a} loved to {use}.', offer='Do you want to {use} with me?',
              fun='{b} said yes, and they had [a wonderful time|a lovely time|a grand time|lots of fun].')
    else:
        s.let(care='{a} always wore it ' + CLOTHES[toy] + '.', offer='Do you want to try it on?',
              fun='{b} tried it on and [looked very fine|spun around|made a funny face].')
    s.let(toy=toy)
    s.tell('''
        {opening}
        ? {fond}
        {a} had a {small} {hue} {toy} from {gg}. {care} | {a.His} favorite thing was a {small} {hue} {toy}. \
        {care} | For {a.his} birthday, {a} got a {small} {hue} {toy}. {care}

        {day}, {a} took the {toy} to {place}. | {day}, {a} went to {place} with the {toy}.
        *
        {a} stopped to [watch the ants|smell the {flower}|look at a {bird}|rest in the shade]. When {a.he} \
        wanted to go on, the {hue} {toy} was gone. | After a while, {a} [took a nap|fell asleep]. When \
        {a.he} woke up, the {hue} {toy} was gone.
        a sad: [Oh no!|Oh dear!] Where is my {toy}?
        {a} looked {spot2} and {spot3}, but it was not there. | {a.He} looked {spot2}. {a.He} looked \
        {spot3}. There was no {toy}. | First {a.he} looked {spot2}. Then {a.he} looked {spot3}. It was in \
        neither place.

        Just then, {bb} came by. | Soon {bb} came along. | {bb} heard {a} and came to help.
        b kind: What is wrong, {a}? | Why are you so sad, {a}? | What are you looking for?
        a sad: I lost my {hue} {toy}. [I looked everywhere.|I cannot find it.|I miss it so much.]''')
    way = s.pick(('saw', 'think', 'sound'))
    if way == 'saw':
        s.tell('''
            b kind: [Wait!|Do not cry.|Cheer up!] I saw something {hue} {spot}.
            {b} led the way and {a} followed. | They [ran|hurried|went] there at once.
            There, {spot}, [lay|was] the {hue} {toy}! | And yes! {spot} they found the {hue} {toy}.''')
    elif way == 'think':
        s.tell('''
            b think: [Let us think.|Think hard.] Where were you [before that|this morning|at first]?
            a think: [Well, I|I think I|Hmm, I] [played|sat|took a rest|ate a snack] {spot}.
            So they went back. {spot}, they saw something {hue}. It was the {toy}! | They walked all the way \
            back, and {spot} lay the {hue} {toy}.''')
    else:
        s.let(finder='kitten|puppy|baby {bird}|bunny|duckling' if s.world == 'k' else
              'ladybug|caterpillar|beetle|cricket')
        s.tell('''
            b kind: I will help you look. | Two can look better than one. | We will find it together.
            {spot}, they heard a tiny sound. A small {finder} was hiding there, right next to the {hue} \
            {toy}! | They looked {spot}. There sat a small {finder}, and beside it was the {hue} {toy}!
            The {finder} was lost, too. {a} [stroked it gently|made it a bed of leaves], and it [fell \
            asleep|was happy].''')
    s.tell('a glad: {thank}')
    s.tell(s.pick(('a glad: {offer}\n{fun}', '{a} held the {toy} tight all the way home.',
                   '{a} hugged {b} and then the {toy}.')))
    s.tell('''
        = looking for something is easier with a friend | it is good to ask for help | two pairs of eyes are \
        better than one | it helps to stay calm and think
        ? {bye}''')


def share(s):
    """One has what the other wants: grabbing fails, sharing works."""
    toy, other = s.take([toy for toy in TOYS if toy not in ('storybook', 'camera', 'teddy bear', 'bell')], 2)
    s.let(toy=toy, use=TOYS[toy], other=other)
    s.tell('''
        {opening}
        ? {fond}

        {day}, {a} met {bb} {at}. | {day}, {bb} came to {place}. {a} was already there.
        *
        {b} had a {small} {hue} {toy}. | {b} had brought a {small} {hue} {toy}.
        {a} wanted to {use}, too. | {a} had never seen such a {small} {toy}. | {a} looked and looked at it.
        a shy: Please, may I have a turn? | Can I {use}, too? | May I play with your {toy}?''')
    way = s.pick(('alone', 'grab', 'swap'))
    if way == 'alone':
        s.tell('''
            b cross: No, it is mine. [I just got it.|You might break it.|I want to play alone.]
            {a} went away and sat down {spot}. | {a} walked off with {a.his} head down and sat {spot}.

            {b} played with the {toy}, but it was [no fun|dull|boring] alone. Nobody \
            [laughed|cheered|clapped]. | At first {b} was glad. But soon {b} felt [lonely|bored], because \
            there was nobody to play with.
            So {b} went to {a} and held out the {hue} {toy}. | Then {b} looked for {a} and found {a.him} \
            {spot}.
            b kind: I am sorry, {a}. [It is more fun with you.|I want us to play together.] You go first.
            a glad: [Really?|Oh!] Thank you, {b}!
            They took turns until [supper|the sun went down|the stars came out].''')
        s.w['a'] = s.w['b']     # it is the owner who learns
        s.tell('= a toy is more fun when it is shared | sharing makes two happy | playing alone is no fun')
    elif way == 'grab':
        s.tell('''
            b: [In a little while.|Soon.|Wait a minute.] I want to [try it first|play a bit more].
            But {a} did not want to wait. {a.He} [grabbed|pulled at|snatched] the {toy}. Crack! It \
            [broke|came apart].
            {b} began to cry. {a} felt [hot|awful|terrible|very bad] inside.
            a sad: I am so sorry, {b}. I should have waited. [I will help you mend it.|Let me mend it.]

            They [carried|took] it to {gg}, who had [glue|tape|glue and string|a tiny hammer]. {a} held the \
            pieces, and soon the {toy} was whole again.
            b kind: Now [it is your turn|you may have a turn]. [I know you will be careful.|Here you are.]
            {a} was very careful this time. Then {a} gave the {toy} back.
            = it is better to wait for a turn | grabbing only breaks things | it is good to say sorry and \
            help''')
    else:
        s.tell('''
            b think: [Hmm.|Well.|I am not sure.] What if you do not give it back?
            {a} ran home and came back with a {hue2} {other}.
            a kind: You can play with my {other}, and I can play with your {toy}. Later we will trade back.
            {b} liked that. {a} got to {use}, and {b} played with the {other}.
            When the sun was low, {a} gave back the {toy} and {b} gave back the {other}.
            b glad: [That was fun!|That was a good idea, {a}!] Let us do it again tomorrow.
            = trading is a kind of sharing | sharing makes two happy | it is good to give something, too
            ? {bye}''')


FEARS = table('world fear shows worry tip deed after', '''
    * - / the dark / At bedtime, the shadows on the wall looked like [giants|monsters|wolves|ghosts]. / There
        is something in the corner. / Let us go and see what it is. / {h} lit a candle, and they tiptoed over.
        It was only a [coat on a hook|heap of clothes|broom with a hat on it]. / After that, {a} could lie in
        the dark and listen to the [crickets|wind|clock|owls].
    * - / thunder / One night there was a storm, and the thunder went boom. / The sky is angry with me. / The
        sky is only playing its drums. Let us count until the next boom. / They counted to five, then to nine,
        and then to twenty. The storm was moving away. / At the very last boom, {a} even clapped.
    * k / the tall slide / All the other children went down the slide, but {a} only stood below and watched. /
        It is so high up there. / Take one step at a time. I will wait for you at the bottom. / {a} climbed
        one step, then two, then ten. {a.He} sat down, shut {a.his} eyes and let go. Whoosh! / It felt like
        flying, and {a} went down {number} more times.
    * k / the big dog next door / It barked whenever {a} walked past the gate. / It wants to bite me. / I
        think it wants to say hello. Let it smell your hand. / {a} held out {a.his} hand. The dog sniffed, and
        then it licked {a.him} from thumb to elbow. / After that, {a} [threw a stick for|stopped to pet] the
        dog every day.
    * k / the dentist / But one tooth hurt, and {a} had to go. / Will it hurt a lot? / You may squeeze my hand
        as hard as you like. / The dentist had a soft voice and a chair that went up and down. {a} squeezed,
        and then it was all done. / {a} got a [sticker|new toothbrush|balloon], and the tooth was as good as
        new.
    * - / singing for others / Everyone was going to sing a song at the [spring|harvest|winter] party. / They
        will all look at me. / Then look only at me, and sing it to me. / {a} stood on the stage with shaky
        knees. {a.He} looked at {h} and sang, louder with every line. / The crowd clapped, and {a} took a deep
        bow.
    * - / the cave / Whenever {a} shouted near the cave, something shouted back. / Somebody is in there. /
        Maybe it just says what you say. Try something nice. / "Hello, friend!" called {a}. "Friend, friend,"
        the cave called back. It was only an echo. / {a} sang a song, and the cave sang along.
    ''')


def fear(s):
    """Something scary is looked at with a helper, and is not so bad."""
    helper(s)
    s.row(FEARS)
    s.let(trait='shy|quiet|little|young|careful|gentle|kind|sweet')
    s.tell('''
        {opening}
        ? {fond}
        But {a} was afraid of {fear}. | Only one thing scared {a}, and that was {fear}. | {a} was scared of \
        {fear}.
        {shows}
        ? {a} [shook like a leaf|felt cold all over|wanted to hide under a blanket|felt sick with fear].

        {hh} [saw it|noticed]. | {hh} came and sat beside {a}. | So {a} went to {hh}.
        h kind: What is the matter, {a}? | Are you all right? | What is it, {a}?
        a scared: {worry}
        ? {h} did not laugh. | {h} listened and did not laugh. | {h} moved closer.
        h kind: {tip}
        ? {a} was still afraid, but {a.he} nodded. | {a} took a [deep|big|long] breath. | {a} wanted to be \
        brave.

        {deed}
        a glad: [I did it!|That was not so bad!|It is not scary at all!|I am not afraid anymore!] [Thank \
        you, {h}.|You were right, {h}.]
        h kind: I knew you could do it. | You were very brave. | I am proud of you. | That was hard, and you \
        did it.
        {after}
        = being brave means to try even when you are afraid | scary things look smaller up close | a friend \
        makes scary things less scary | it helps to talk about a fear''')


RULES = table('world rule breaks question confess mend', '''
    * - / touch the cake. It is for the party / The cake smelled so sweet. {a} took one tiny bite. Then {a.he}
        took another. Soon there was a big hole in it. / Who ate the cake? / I ate it. / They baked another
        cake, and {a} did all the stirring.
    * k / play ball in the house / But it was raining, and {a} threw the ball just once. Crash! The
        [vase|lamp|blue plate|teapot] fell and broke. / What was that noise? / I threw my ball and something
        broke. / They swept up the pieces and glued them together, one by one.
    * - / leave the gate open / {a} was in a hurry and forgot all about the gate. Soon the
        [hens|geese|sheep|goats] were all over the road. / Who left the gate open? / I forgot to close it. /
        They ran up and down until every one was back. Then {a} closed the gate and checked it twice.
    * k / draw on the wall / But the wall was so big and so white. {a} drew a {hue}
        [dragon|horse|castle|ship|rainbow|giraffe] on it. / How did that get on the wall? / I drew it. / {a}
        scrubbed the wall with soap and a sponge. Then they hung up a big sheet of paper for drawing.
    * - / open the box on the shelf. It is a surprise / {a} only wanted to peek. But when the lid came off, a
        hundred beads rolled all over the floor. / Why are there beads on the floor? / I opened the box. / {a}
        crawled under every chair until all the beads were back. Then they made a necklace together.
    * - / ring the big bell. It is only for a fire / But {a} wanted to hear it just once. Ding, dong! All the
        neighbors came running with buckets of water. / Where is the fire? / There is no fire. I rang the bell
        for fun. / {a} went to every neighbor to say sorry, and helped to carry the buckets home.
    * - / eat the berries. I need them for jam / {a} ate only one. But it was so juicy that {a.he} ate them
        all, and {a.his} mouth turned purple. / Where did my berries go? / I ate every single one. / {a} took
        the empty basket to the bushes and picked until it was full again.
    ''')


def rule(s):
    """A rule is broken; owning up makes it right."""
    s.row(RULES)
    s.tell('''
        {opening}
        ? {fond}

        {day}, {gg} had to go out for a while. | {day}, {gg} was very busy. | {day}, {a} was at home with \
        {gg}.
        g kind: Please do not {rule}.
        a: [I will not forget.|Yes, {g}.|All right.|I promise.]

        {breaks}
        {a} felt [sick|awful|bad|hot and cold]. What now? | {a} stood there with wide eyes.''')
    way = s.pick(('own', 'hide', 'blame'))
    if way == 'hide':
        s.tell('''
            Then {a} hid [under the bed|behind the curtain|in the closet|behind the stove|under the table] \
            and hoped that nobody would notice.''')
    s.tell('g ask: {question}')
    if way == 'blame':
        s.tell('''
            a shy: [Maybe|I think] it was my friend {b}. | The wind did it. | It was a {bird}.
            But that was not true, and {a} [had a lump in {a.his} throat|could not look up].
            a sad: No, that was a lie. {confess} I am [so|very] sorry.''')
    else:
        s.tell('''
            ? It was very quiet. | {a} wanted to run away, but {a.he} did not. | {a} swallowed hard.
            a sad: [It was me.|I have to tell you something.] {confess} I am [so|very] sorry.''')
    s.tell('''
        g kind: I am [not happy about it|a little sad], but [I am glad that you told me|thank you for \
        telling me the truth|it was brave to tell me]. [Let us fix it together.|What can we do about \
        it?|Come, we will make it right.]

        {mend}
        When it was done, {g} gave {a} a [big|warm|long] hug. | Then {g} smiled again, and so did {a}. | It \
        was hard work, but {a} felt [light|much better|good] again.
        = telling the truth makes a heavy heart light | rules have a reason | a mistake can be mended if you \
        own up | it is best to tell the truth right away''')


RESCUES = table('where animal trouble sound plan act after', '''
    * orchard / baby {bird} / It had fallen out of its nest in the {tree} tree. / Cheep, cheep! / We need a
        ladder. / {b} held the ladder. {a} climbed up with the bird in a soft [sock|cap|cloth] and set it back
        in the nest. / The next morning, the mother {bird} sang her best song for {a}.
    * forest / kitten / It sat high up in the {tree} tree and could not get down. / Mew, mew! / Let us lean a
        plank on the branch. / They put up a plank, with a dish of milk at the bottom. Step by step, the
        kitten came down. / After that, the kitten followed {a} everywhere.
    * riverbank / fish / It lay in a puddle, and the puddle was drying up. / Flip, flop! / We must take it to
        deep water, and fast. / {b} brought a pail. {a} scooped up the fish and let it go in the deep water. /
        The fish jumped three times, as if to say thank you.
    * meadow / bumblebee / It sat on the ground and was too tired to fly. / Bzz, bzz. / It needs something
        sweet. / {b} mixed sugar and water on a spoon. The bumblebee drank it all, shook its wings and flew
        up. / The bumblebee made a loop over {a} and buzzed away to the {flower}.
    * meadow / lamb / Its wool was caught in a bramble bush. / Baa, baa! / I will bend the branches, and you
        free the wool. / {b} bent the thorny branches and {a} untangled the wool, until the lamb was free. /
        The farmer was so glad that {a} and {b} got a [warm scarf|ball of yarn|jug of milk|round cheese].
    * lake / duckling / It had slipped into a deep hole and could not climb out. / Peep, peep! / We can make a
        ramp out of [a board|sticks]. / They pushed the ramp into the hole. The duckling waddled up, one small
        step at a time. / The mother duck came quacking with {number} more ducklings behind her.
    * orchard / beetle / It lay on its back and kicked its legs in the air. / Crick, crick. / Give it
        something to hold on to. / {a} held out a blade of grass. The beetle grabbed it, and {a} turned it
        over. / The beetle shone green and blue as it marched away.
    ''')


def rescue(s):
    """A small animal in need is helped."""
    s.row(RESCUES)
    s.settle(s.fill('{where}'))
    s.tell('''
        {opening}
        ? {fond}

        {day}, {a} and {bb} went to {place}. | {day}, {a} was {at} with {bb}. | {day}, {a} and {bb} played \
        {at}.
        *
        Suddenly {a} stopped. "{sound}" There was a {animal}! {trouble} | Then {a} heard something. \
        "{sound}" It was a {animal}. {trouble} | "{sound}" What was that? {a} looked around and saw a \
        {animal}. {trouble}
        a sad: [Oh, you poor thing!|Poor little {animal}!|Look, {b}, it needs help!|We have to do \
        something!]''')
    if s.random() < 0.3:
        s.tell('''
            b think: We will be late for supper. | Are you sure? | Maybe somebody else will help.
            a kind: It is so small, and we are big. | We cannot leave it here. | If we go, who will \
            help?''')
    s.tell('''
        b think: [You are right.|Yes.|I have an idea.] {plan}
        "[Do not be afraid|We will help you|Stay calm, little one]," {a} told the {animal} [softly|gently]. \
        | {a} moved slowly, so that the {animal} would not be scared. | {a} spoke to the {animal} in a soft \
        voice.

        {act}
        b glad: We did it! | You did it, {a}! | It worked!
        {a} {joy}. | {a} felt warm inside. | {a} was so happy that {a.he} {joy}.
        {after}
        ? a glad: {thank}
        = even small ones need help sometimes | a little kindness can be a big thing | it is good to stop \
        and help | gentle hands can do great things''')


BUILDS = table('world where thing parts work disaster better', '''
    * k / beach / sandcastle / wet sand, shells and a feather for a flag / They filled the pail and turned it
        over, again and again. / A big wave rolled in and washed half of it away. / dig a ditch for the water
    * k / backyard / tree house / boards, nails and an old rope / They sawed and hammered until their arms
        were tired. / Crack! The floor gave way and fell into the bushes. / put two thick beams under the
        floor
    * - / hill / windmill / sticks, paper and one long nail / They cut four sails and painted them {hue}. / A
        strong wind came and tore off the sails. / make the sails out of cloth
    * - / forest / hut / branches, bark and moss / They stacked branch on branch and stuffed the gaps with
        moss. / In the night it rained, and the roof fell in. / make the roof steep, so that the rain runs off
    * - / orchard / scarecrow / straw, a broom and an old coat / They stuffed the coat and drew a face on a
        sack. / A goat came by and ate all the straw. / stuff it with rags, since goats do not eat rags
    * k / playground / tower / blocks, boxes and tin cans / It grew as high as their knees, and then as high
        as their chins. / A soccer ball hit it, and down it came with a clatter. / make it wide at the bottom
    ''')


def build(s):
    """Something is built, breaks, and is built better."""
    s.row(BUILDS)
    s.settle(s.fill('{where}'))
    s.tell('''
        {opening}
        {a} had a plan. {a.He} wanted to build a {thing}. | For a long time, {a} had wanted to build a \
        {thing}. | More than anything, {a} wanted to build a real {thing}.

        {day}, {a} asked {bb} to come to {place}. | {day}, {a} and {bb} met {at}.
        *
        a glad: [Will you help me build a {thing}?|Let us build a {thing}!] We [need|can use] {parts}.
        b glad: I would love to! | What a good idea! | Yes! I can carry things. | Let us start right now!

        {work}
        At last, the {thing} was [ready|finished|done]. It looked [grand|lovely|splendid|very fine]. | By \
        [noon|lunch|evening], there it stood, the finest {thing} [in the world|far and wide|of all].
        But then something happened. {disaster} | But oh dear! {disaster}''')
    if s.random() < 0.35:
        s.tell('''
            a cross: It is your fault, {b}! | You did it all wrong, {b}!
            {b} turned away and said nothing. {a} saw it and felt sorry.
            a sad: I did not mean that. I was just [sad|upset]. [Please stay.|Can you forgive me?]
            b kind: [It is all right.|I am sad about it, too.] Let us try again. We can {better}.''')
    else:
        s.tell('''
            a sad: All our work is gone. | Now it is all spoiled. | I want to give up.
            b kind: [Do not give up.|Cheer up, {a}.|We are not done yet.] [This time we will|We can] \
            {better}.''')
    s.tell('''
        So they [began again|started over|went back to work]. It took [all afternoon|a long time|two more \
        days].
        This time the {thing} [held|stayed whole], and it was even better than before. | The new {thing} was \
        stronger than the first, and it [held|did not break].

        a glad: {thank}
        = a thing that breaks can be built again | it is too soon to give up after one try | a mistake can \
        be a good teacher
        ? {bye}''')


CONTESTS = table('world contest trains course winner praise', '''
    * - / race / ran up and down the road every morning / They ran past the mill, over the bridge and back. /
        {b} was one step ahead at the finish line. / You ran like the wind
    * - / pie contest / baked a {fruit} pie every day / The judge tasted a bit of each pie and licked the
        spoon. / the judge liked the pie that {b} had made best of all. / Your pie smells like heaven
    * - / singing contest / sang to the {bug} and the trees / Each of them sang three songs, and the crowd
        hummed along. / the crowd clapped longest for {b}. / Your song gave me goose bumps
    * - / pumpkin contest / watered a pumpkin and read stories to it / The pumpkins were rolled onto the big
        scale. / the one that {b} had grown was heavier by just one seed. / That pumpkin is as big as a coach
    * k / spelling contest / spelled every word on the cereal box / The words got longer and longer. / {b}
        knew how to spell rhinoceros, and {a} did not. / You know so many words
    * - / dancing contest / twirled around the kitchen table / The fiddle played faster and faster. / {b} was
        still dancing when all the others had to sit down. / You have springs in your feet
    ''')


def contest(s):
    """A contest is lost with grace, or given up to help."""
    s.row(CONTESTS)
    s.tell('''
        {opening}
        There was going to be a {contest}, and the prize was a {prize}. {a} wanted to win it. | Every year \
        there was a {contest}. This year, {a} wanted to win the {prize}.
        For weeks, {a} {trains}. | To get ready, {a} {trains}.
        ? {gg} [helped|cheered {a.him} on|watched and clapped].

        At last the day of the {contest} came. {bb} was in it, too. | Then the big day came. {bb} was in the \
        {contest}, too.
        +
        b glad: Good luck, {a}! | May the best one win! | I hope you do well, {a}!
        a: Good luck to you, too! | And you, {b}! | Thanks. I will try my best.
        ''')
    if 'race' in s.fill('{contest}') and s.random() < 0.6:
        return s.tell('''
            {a} was in front, and the finish was near. Then {b} cried out. {b.He} had [hurt {b.his} leg|a \
            cramp].
            {a} looked at the finish. {a} looked back at {b}. Then {a} turned around.
            a kind: [Lean on me.|Hold on to me.|I will help you.] [The prize can wait.|We can finish \
            together.]
            They came in last, side by side, and everyone stood up and cheered.
            b ask: You could have won the {prize}. Why did you stop?
            a glad: Because you are my friend. | A friend is better than a {prize}. | You needed me.
            = a friend is worth more than a prize | helping can feel better than winning''')
    s.tell('''
        {course} {a} did well. But in the end, {winner}
        So {b} got the {prize}. {a} [had a lump in {a.his} throat|felt like crying|kicked a stone|was very \
        quiet].''')
    way = s.pick(('grace', 'sulk', 'learn'))
    if way == 'sulk':
        s.tell('''
            a cross: It is not fair. | I worked so hard. | I never want to do this again.
            {gg} came over.
            g kind: [You did your best.|I saw how hard you tried.] How do you think {b} feels?
            {a} saw that {b} was standing all alone with the {prize}. So {a} went over.''')
    else:
        s.tell('But then {a} saw how happy {b} was, and {a.he} went over [with a smile|and smiled].')
    s.tell('a glad: [Well done, {b}!|You were great, {b}!] {praise}.')
    if way == 'learn':
        s.tell('''
            b kind: Thank you! You were very good, too. [Shall we train together?|Do you want to know how I \
            do it?]
            After that, they trained together, and the next year, {a} won. Who cheered the loudest? It was \
            {b}!''')
    else:
        s.tell('''
            b glad: Thank you, {a}! [You made me try harder than ever.|It was so close.] [Come, let us \
            celebrate.|Will you celebrate with me?]
            They shared {snack}, and {a} was not sad anymore. | They sat in the grass until {a} laughed \
            again.''')
    s.tell('= you can lose and still be happy for a friend | doing your best is what counts | \
            a good loser makes good friends')



NEWCOMERS = table('alone question answer act result', '''
    * drew in the dust with a stick / What are you drawing? / A whale. I used to live by the sea, and I miss
        it. / Together they drew waves, crabs and a ship / a picture as long as the street
    * hummed a song / What is that song? / My grandpa sings it. He lives far away now. / They sang it together
        and beat time on a log / a song for three voices
    * stacked flat stones / How do you make it so tall? / You have to feel where each stone wants to sit. /
        They stacked stones together, with steady fingers / a tower taller than any of them
    * watched the ants / What are they carrying? / Crumbs. That one has a crumb as big as itself! / They laid
        a trail of crumbs and cheered for the ants / a long, busy ant parade
    * folded a piece of paper / Is that a bird? / It is a crane. I can show you how. / They folded and creased
        until their laps were full / a whole flock of paper birds
    * juggled two pine cones / Can you do it with three? / Not yet. I always drop one. / They practiced
        together and picked up what fell / a little circus with bows and cheers
    ''')


def newcomer(s):
    """Somebody new and shy finds a friend."""
    s.row(NEWCOMERS)
    s.tell('''
        {opening}

        {day}, {a} and {bb} played {at}. There they saw {cc}. | {day}, {a} and {bb} met {at}, and somebody \
        new was there. It was {cc}.
        ? {sight}
        {c} had just moved there and did not know anybody. | {c} came from far away and had no friends there \
        yet.
        {c.He} sat {spot} and {alone}. | All alone, {c} {alone}.

        b: {c.He} never says a word. | Maybe {c.he} does not like us. | {c.He} does not look at us.
        a kind: [Maybe {c.he} is just shy.|I think {c.he} is lonely.|I would be shy, too, in a new place.] I \
        will say hello.
        {a} walked over and sat down, not too close. | {a} went over with a smile.
        a>c: [Hello.|Hi there!] I am {a}. {question}
        {c} looked [away|down] and [blushed|said nothing]. {a} waited. | At first, {c} did not answer. {a} \
        waited.
        c shy: {answer}
        a>c glad: [That is wonderful!|I like that!|How nice!] May I [join you|help|try it, too]?

        {c} nodded. {act}.
        Soon {b} came over. "Can I play, too?" asked {b}, and {c} made room. | {b} watched for a while. "I \
        am sorry that I did not say hello," said {b}. "Is there room for one more?"
        In the end, they had made {result}.
        c shy: [I was afraid that nobody would like me.|I was so lonely before.] [Thank you, {a}.|I am glad \
        you came.]
        And so there were three friends and not two. | The next day, {c} waited for {a} and {b} at \
        the gate.
        = a quiet one may only need a kind hello | it is good to make the first step | shy does not mean \
        unfriendly''')


PROMISES = table('task call keep close', '''
    * feed the [hens|rabbits|geese] at noon / There is a [puppet show|clown] in the village! / filled the
        bowls with grain and water / They had already begun to push at the gate
    * water the young plants while I am out / The [lake|pool] is warm. Come and swim! / carried the heavy can
        up and down the rows / The little plants had begun to droop
    * watch the baby while I hang up the wash / Come and see the big balloon in the sky! / shook the rattle
        and sang to the baby / The baby had crawled all the way to the stairs
    * keep a candle in the window for the fishermen / Come and dance! There is music on the square! / sat by
        the candle and kept it from going out / A small boat was looking for the shore
    * bring this letter to the post office today / We are playing pirates and we need a captain! / ran to the
        post office with the letter held tight / It was very late, and the post office was about to close
    ''')


def promise(s):
    """A promise is kept although something else is more fun, or nearly forgotten."""
    s.row(PROMISES)
    s.tell('''
        {opening}
        ? {fond}

        {day}, {gg} called {a}. | {day}, {gg} needed help. | {day}, {gg} asked {a} for something.
        g kind: [{a}, will|Please, {a}, will|{a}, can] you {task}? [It is important.|I am counting on you.|]
        a glad: I promise! | Yes, {g}. I promise. | You can count on me. I promise.

        A little later, {bb} came running. | Soon {bb} knocked at the door. | Then {bb} called from outside.
        b glad: [Hurry, {a}!|{a}, come quick!] {call}''')
    if s.random() < 0.45:
        s.tell('''
            {a} forgot everything and ran along. They had {number} minutes of fun. Then {a} stopped and \
            turned pale.
            a scared: [Oh dear, my promise!|I forgot my promise!] I have to go back.
            {a} ran home as fast as {a.he} could. {close}. {a} {keep}.

            It was just in time. When {g} came back, {a} told {g.him} the whole story.
            g kind: [Thank you for telling me.|You remembered, and you came back.] [Next time, do the task \
            first.|A promise comes first.]
            {a} nodded. The next day, {a} made a promise again, and this time {a.he} did not forget.''')
    else:
        s.tell('''
            {a} wanted to go very much. {a.He} looked out of the door, and then back. | {a} took two steps \
            and stopped.
            a sad: [I would love to, but|I want to come, but|Not now.] I made a promise.
            b: Nobody will know. | Can it not wait? | It will only take a minute.
            a think: [I gave my word.|A promise is a promise.] [Save me a place.|Go on without me.|\
            I will come later.]
            So {a} stayed behind. {a.He} {keep}.

            When {g} came back, everything was in order. | {g} came home and saw it all.
            g kind: [You kept your word.|I knew I could trust you.] [Now go and have fun!|Off you go!]
            {a} ran to {b}, and the best part was just beginning. | {b} had saved a place for {a}. It was \
            grand. | And guess what? {b} came back to keep {a} company, with {snack}.''')
    s.tell('= a promise is there to be kept | others can trust you when you keep your word | \
            first comes the promise, and then the fun')


PLANTS = table('seed plant ripe made', '''
    * sunflower seed / sunflower / was a yellow flower as wide as a plate / there was a feast of seeds for the
        birds
    * pumpkin seed / pumpkin / was a fat orange pumpkin / they baked a pumpkin pie
    * bean / bean plant / were long green beans / they cooked a pot of bean soup
    * tomato seed / tomato plant / were round red tomatoes / they made tomato salad
    * melon seed / melon / was a round striped melon / there were juicy slices for everyone
    * tulip bulb / tulip / was a tulip with {hue} petals / it stood in a vase for everyone to see''')


def garden(s):
    """Waiting for a plant takes patience."""
    s.row(PLANTS)
    s.tell('''
        {opening}

        {day}, {gg} gave {a} a {seed}. | {day}, {a} found a {seed} in a [drawer|tin|paper bag]. {gg} knew \
        what it was.
        g kind: Put it in the ground, water it every day, and wait. [One day it will be a {plant}.|You will \
        see.]
        {a} dug a [small|deep|neat] hole, put in the {seed} and covered it with soil.

        The next morning, {a} ran to look. There was only [brown|bare] earth. {a.He} looked every day. Still \
        nothing!
        a ask: Why does it not grow? | When will it come up? | Is it asleep?
        g kind: [It needs time.|Good things are slow.|It is busy under the ground.] [You cannot hurry it.|Be \
        patient.|Just wait a bit longer.]''')
    s.tell(s.pick(('''
        But {a} could not wait. {a.He} took a spoon and dug it up. There was a tiny white root!
        g kind: Oh, {a}! Now it has to start again. Tuck it in like a baby.
        {a} tucked it in very gently, and this time {a.he} left it alone.''', '''
        At last a green tip came up. But one morning, a {pest} had eaten half of a leaf.
        {bb} helped {a} to [carry the {pest} away|find the {pest} a new home] and to put eggshells \
        around the plant.''', '''
        Then it got hot, and there was no rain for {number} days. The soil was dry and cracked.
        Every evening, {a} and {bb} carried water from the well, cup by cup.''')))
    s.tell('''
        Days went by, and then weeks. {a} [pulled the weeds|sang to it|watered it] and waited. | The sun \
        shone, the rain fell, and {a} waited. {a.He} did not [complain|peek] even once.

        And then, one morning, there {ripe}!
        a>g glad: Look, {g}! It is here! | Come and see, {g}! | It really grew!
        {a} {joy}. In the end, {made}.
        g kind: [You waited, and it was worth it.|You took good care of it.|It grew because you were \
        patient.]
        = good things take time | a bit of care every day makes things grow | waiting can be worth it''')


SKILLS = table('world skill fails tip where success', '''
    * k / ride a bike / wobbled, tipped over and scraped {a.his} knee / Look where you want to go, and keep
        your feet moving. / up and down the lane / The bike rolled straight, past the mailbox and all the way
        to the corner
    * - / swim / swallowed water and coughed / Blow bubbles first, and kick with long legs. / in the shallow
        water / The water carried {a.him}, and {a.he} swam to the other side
    * k / whistle / blew and blew, but only air came out / Make your lips small and round, and blow softly. /
        on the way to school / Out came a thin, clear note, and a {bird} answered
    * - / climb trees / slid down and landed on {a.his} bottom / Always hold on with three, and move one. / on
        the lowest branch / {a} sat at the top of the {tree} tree and could see the whole valley
    * - / skip stones / threw a stone, and it went plop / Take a flat one, and throw it low from the side. /
        until {a.his} arm was sore / The stone hopped one, two, three, four times
    * k / read / mixed up all the letters / Say each letter out loud, and then push them together. / with
        signs, labels and cereal boxes / The letters turned into a word, and the word was home
    * - / catch a ball / closed both eyes, and the ball bounced off {a.his} head / Watch the ball all the way.
        / against the barn wall / Smack! The ball was safe in {a.his} arms''')


def skill(s):
    """Too small or too clumsy at first; practice does it."""
    helper(s)
    s.row(SKILLS)
    s.w['t'] = s.w['h']
    s.tell('''
        {opening}
        All of the others could {skill}, but {a} could not. | More than anything, {a} wanted to {skill}. | \
        {a} had a wish. {a.He} wanted to {skill}, just like {a.his} big [brother|sister|cousin].

        {day}, {a} tried it. {a.He} {fails}. | {day}, {a} wanted to learn it. But {a.he} {fails}.
        {a.He} tried again, and it went wrong again. | The second time was no better. | The next try was \
        even worse.
        a sad: [I am too small.|I will never learn it.|It is too hard.] [I give up!|Everyone else can do \
        it.|]

        {hh} had seen it. | {hh} sat down beside {a}. | {hh} came by and [stopped|smiled].
        h kind: You just cannot do it yet. | I could not do it at first, either. | I failed a hundred times \
        before it worked.
        a ask: Really? | Is that true? | How did you learn it?
        h kind: [Here is a trick.|I will tell you a trick.|Listen to me.] {tip}
        So {a} practiced {where}. {a.He} practiced on Monday and on Tuesday and all week long. | Every day, \
        {a} practiced {where}. Some days went well, and some did not.
        ? Once, {a} got so angry that {a.he} kicked a bucket. But the next day, {a.he} tried again. | "A \
        little better," said {h} each time. | {h} never laughed when it went wrong.

        And then, one day, it worked. {success}! | Then {a} took a deep breath and tried once more. \
        {success}!
        a>h glad: I can do it! | Did you see that? | Look, {h}, look!
        {h} clapped and cheered. | {a} {joy}. | {h} hugged {a} and {a} laughed.
        ? {a} thanked {h} for the good advice.
        Later, {a} saw {cc}, who could not do it yet. "Come, I will show you a trick," said {a}. | That \
        evening, {a} showed it to everyone, twice.
        = practice makes hard things easy | nobody can do everything at first | one more try can make the \
        difference''')


TROUBLES = table('trouble call answer', '''
    * A thick fog came up, and {a} could not see the path / Which way is home? / I know every stone here.
        Follow my voice.
    * {a} slipped into a deep hole and could not get out / Is anybody there? / I have a rope. Hold on, and I
        will pull.
    * The wind blew {a.his} {hue} hat up into a {tree} tree / I will never get it back! / I can climb well.
        Wait here.
    * The strap of {a.his} bag broke, and {number} {fruit} tarts rolled down the road / Stop, stop! / I will
        catch them at the bottom!
    * It began to pour, and {a} had no umbrella / I am soaked and cold! / Come into my house. There is a fire
        and a dry towel.
    * {a} was stuck in the mud up to {a.his} knees / I cannot move! / Take hold of this branch, and do not let
        go.''')


def favor(s):
    """Food is shared with a stranger, who helps in turn."""
    s.row(TROUBLES)
    s.w['t'] = s.w['c']
    s.tell('''
        {opening}
        ? {fond}

        {morning}, {a} went to {place} with {snack} for lunch. | {morning}, {a} took {snack} along to {place}.
        *
        There {a} met {cc}, who sat {spot} and looked [tired|hungry|thin].
        a>c kind: [Hello!|Good day!] [My name is {a}.|I am {a}.] [Are you all right?|Is something wrong?]
        c sad: I have not eaten since yesterday. | My lunch fell into the water. | My tummy growls, I am so \
        hungry.
        {a} looked at the food. It was not much, and {a} was hungry, too. | {a} had looked forward to lunch \
        all morning. | {a} thought about it, but not for long.
        a>c kind: Here, take half of mine. | We can share. | There is enough for two.
        c glad: [Thank you! I will not forget it.|You are kind. I hope that I can help you one day.]
        ? It was not enough to be full, but it tasted better than ever. | They ate every crumb and talked \
        about {bug}.

        {number} days later, {a} was on the way home. {trouble}. | Not long after, {a} was in trouble. \
        {trouble}. | Then, on the way back, something went wrong. {trouble}.
        a scared: {call}
        Somebody came running. It was {c}! | And who came around the corner? It was {c}! | A face popped up. \
        It was {c}!
        c kind: [Do not worry, {a}!|There you are, {a}!] {answer}
        And that is just what happened. Soon everything was [well|fine|all right] again. | It did not take \
        long, and {a} [was safe|could smile|was happy] again.
        a>c glad: {thank}
        c kind: You shared with me, and now I could help you. | You helped me first. | That is what friends \
        are for.
        = kindness comes back | what you give away can come back to you | a shared lunch can make a friend
        ? After that, {a} and {c} often had lunch together. | The next time, {c} brought {snack2} for both \
        of them.''')


# -----------------------------------------------------------------------------

PLOTS = (lost, share, fear, rule, rescue, build, contest, newcomer, promise, garden, skill, favor)


def stories(seed=1337, count=24000):
    """Yield `count` pairwise distinct stories; a smaller count gives the beginning of the same list."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        s = cast(rng)
        s.pick(PLOTS)(s)
        text = tidy(s.text)
        key = hashlib.sha1(text.encode()).digest()
        if 80 <= len(text.split()) <= 250 and key not in seen:      # else draw again; both are rare
            seen.add(key)
            yield text


if __name__ == '__main__':
    for story in stories(seed=random.randrange(10**6), count=5):
        print(story, end='\n\n' + 79 * '-' + '\n\n')
