"""
A synthetic stand-in for TinyStories: short children's stories made by a small seeded grammar.

It exists so that the tokenizer, the training loop and the evaluation all run without a download.
It is not TinyStories and was not derived from it: a loss or a sample measured here says nothing
about the real data set. The language is much easier, because every sentence comes from a template.

How it is written: a template may hold choices, "[red|blue] kite", which can nest, and fields,
"{a} lost {a.his} {toy}", filled from the words of the tale at hand. `Tale.let` fixes a word for
the rest of the tale, which is what keeps toy, place and friend the same from beginning to end.
One function per plot; the tables above the plots are rows of such templates.

$ python data/tinystories/synthetic.py     # prints a few stories
"""
import hashlib
import random
import re

# -----------------------------------------------------------------------------
# who: names, animals, grown-ups

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

# kind: (home, what it eats, what it does when glad, what it holds things with)
ANIMALS = {
    'rabbit': ('a burrow under the hill', 'carrots', 'hopped in a circle', 'paw'),
    'bear': ('a cave by the waterfall', 'honey', 'danced on two legs', 'paw'),
    'fox': ('a den among the ferns', 'blackberries', 'swished {his} bushy tail', 'paw'),
    'mouse': ('a hole behind the mill', 'cheese', 'squeaked with joy', 'paw'),
    'squirrel': ('a nest in a hollow oak', 'acorns', 'ran up a tree and down again', 'paw'),
    'hedgehog': ('a heap of dry leaves', 'mushrooms', 'rolled into a happy ball', 'paw'),
    'frog': ('a house of reeds by the pond', 'berry soup', 'gave a great big croak', 'hand'),
    'duck': ('a nest by the water', 'corn', 'quacked with joy', 'wing'),
    'kitten': ('a basket in the barn', 'cream', 'purred like a little motor', 'paw'),
    'puppy': ('a kennel on the farm', 'biscuits', 'wagged {his} tail', 'paw'),
    'piglet': ('a sty full of straw', 'turnips', 'oinked and rolled over', 'foot'),
    'lamb': ('a barn on the moor', 'clover', 'skipped from side to side', 'hoof'),
    'goat': ('a shed on the mountain', 'cabbage leaves', 'kicked up {his} heels', 'hoof'),
    'pony': ('a stable by the road', 'oats', 'galloped around once', 'hoof'),
    'turtle': ('a nook between two stones', 'lettuce', 'did a slow little dance', 'foot'),
    'beaver': ('a lodge on the river', 'pears', 'slapped {his} flat tail', 'paw'),
    'raccoon': ('a hollow log', 'plums', 'clapped {his} paws', 'paw'),
    'badger': ('a snug tunnel', 'hazelnuts', 'drummed on {his} tummy', 'paw'),
    'mole': ('a room under the lawn', 'radishes', 'wiggled {his} pink nose', 'paw'),
    'otter': ('a den on the riverbank', 'watercress', 'slid down the bank and laughed', 'paw'),
    'deer': ('a clearing in the woods', 'sweet grass', 'leaped over a bush', 'hoof'),
    'chipmunk': ('a crack in an old wall', 'walnuts', 'puffed out {his} cheeks', 'paw'),
    'monkey': ('a treetop in the jungle', 'bananas', 'swung from a branch', 'hand'),
    'elephant': ('a valley of tall grass', 'melons', 'lifted {his} trunk and trumpeted', 'trunk'),
    'panda': ('a bamboo grove', 'bamboo', 'turned a somersault', 'paw'),
    'koala': ('the fork of a gum tree', 'leaves', 'gave a sleepy smile', 'paw'),
    'lion cub': ('a den under the rocks', 'stew', 'gave a tiny roar', 'paw'),
    'donkey': ('a field behind the inn', 'hay', 'brayed so loudly that the windows shook', 'hoof'),
}
GROWN_UPS = {'Mom': 1, 'Dad': 0, 'Grandma': 1, 'Grandpa': 0, 'Aunt Rose': 1, 'Uncle Joe': 0, 'Aunt May': 1,
             'Uncle Bill': 0}     # name: is she a woman?
TRAITS = ('''cheerful|kind|curious|clever|gentle|playful|friendly|happy|little|young|lively|quiet|merry|
bright|funny|busy|sweet|thoughtful|dreamy|polite''').replace('\n', '')
HOUSE = '''a [small|tall|narrow|white|yellow|brick|stone|wooden|crooked|cozy] [house|cottage] [by the sea|
near the woods|at the end of a quiet street|on a green hill|next to a bakery|across from the library|
behind the church|at the edge of town|in a small village|beside the railway|near the harbor|
with a [blue|red|green] door|with roses around the door]'''.replace('\n', '')
HOBBIES = '''paint pictures|sing songs|draw maps|tell stories|look at the clouds|make up riddles|play tag|
help in the kitchen|dance in the rain|collect pebbles|pick wildflowers|watch the trains go by|roll down hills|
play hide-and-seek|read about pirates|count the stars|jump in puddles|blow bubbles|chase butterflies|
pretend to be a [knight|sailor|wizard|captain|queen|giant|dragon]|ask questions|do puzzles|bake bread|
build little bridges|listen to the wind|skip stones|dig for treasure|make crowns of leaves|whistle'''
HOBBIES = HOBBIES.replace('\n', '')

# -----------------------------------------------------------------------------
# where: name: (preposition, who goes there: k children only, '' everyone, spots, sights)

PLACES = {
    'park': ('in', 'k', 'under the slide|behind the big oak|beside the duck pond|under a green bench|'
             'next to the fountain|in the long grass by the gate',
             'Ducks paddled on the pond.|A man was selling balloons by the gate.|Two old ladies fed the pigeons.|'
             'A brass band was playing.|A gray squirrel ran along the fence.'),
    'beach': ('at', 'k', 'behind a big rock|under an upturned boat|beside a tide pool|in a heap of seaweed|'
              'near the lighthouse|under the pier',
              'Seagulls cried above the waves.|A crab walked sideways over the sand.|White sails moved far out at sea.|'
              'The air smelled of salt.|Tiny shells lay everywhere.'),
    'playground': ('at', 'k', 'under the seesaw|behind the swings|in the sandbox|beside the climbing frame|'
                   'inside the little tunnel|under the monkey bars',
                   'The swings went up and down.|Some big boys were playing soccer.|A baby laughed in a stroller.|'
                   'Someone had drawn a chalk snail on the ground.'),
    'farm': ('on', 'k', 'behind the barn|under the tractor|in the hayloft|beside the chicken coop|'
             'next to the water trough|in the pumpkin patch',
             'Brown cows chewed their grass.|A rooster stood on the roof.|Fat hens scratched in the dust.|'
             'The hay smelled sweet.|A sheepdog barked at the geese.'),
    'backyard': ('in', 'k', 'under the porch|behind the shed|beside the birdbath|under the rose bush|'
                 'inside the watering can|behind the flowerpots',
                 'Clean sheets flapped on the clothesline.|A snail crept up the wall.|Next door, somebody was mowing the lawn.|'
                 'A tabby cat slept on the fence.'),
    'campground': ('at', 'k', 'under the picnic table|behind the tent|beside the campfire|inside a sleeping bag|'
                   'next to the canoe|behind the woodpile',
                   'Smoke curled up from the campfire.|The tents looked like small hills.|Somewhere, a guitar was playing.|'
                   'Pine needles covered the ground.'),
    'meadow': ('in', '', 'among the daisies|behind a haystack|under a thorn bush|beside the stream|'
               'next to an anthill|in the tall clover',
               'Bees hummed from flower to flower.|Grasshoppers chirped in the grass.|The wind made waves in the grass.|'
               'Poppies nodded in the breeze.'),
    'forest': ('in', '', 'behind a mossy stump|under a fern|inside a hollow log|beside a fallen pine|'
               'between the roots of an old beech|under a heap of leaves',
               'Sunlight fell through the branches.|A woodpecker tapped on a trunk.|The moss was as soft as a pillow.|'
               'Red mushrooms grew in a ring.|It smelled of earth and pine.'),
    'riverbank': ('on', '', 'among the reeds|under the little bridge|behind a willow tree|between two wet stones|'
                  'beside an old rowboat|in the soft mud',
                  'Small fish flashed in the water.|A heron stood on one leg.|The river bubbled over the stones.|'
                  'Blue dragonflies darted here and there.'),
    'orchard': ('in', '', 'under a pear tree|behind a wheelbarrow|in an empty basket|beside the stone wall|'
                'at the foot of a ladder|behind the beehives',
                'Red apples shone on every tree.|The ripe plums smelled like jam.|Wasps buzzed around the fallen fruit.|'
                'A blackbird pecked at a cherry.'),
    'hill': ('on', '', 'behind a tall rock|under a bramble bush|beside the old windmill|in a patch of heather|'
             'next to the broken gate|in a dip in the ground',
             'From the top, the houses looked like toys.|Sheep grazed on the slope.|The wind blew hard up there.|'
             'A hawk sailed high in the sky.'),
    'lake': ('by', '', 'under the wooden dock|behind the boathouse|among the cattails|beside a gray boulder|'
             'inside an old canoe|under a birch tree',
             'Water lilies floated near the shore.|Two swans glided past.|The lake was as smooth as glass.|'
             'A fish jumped and went back with a splash.'),
}

# -----------------------------------------------------------------------------
# what: things, food and the small sentences that colour a scene

COLORS = 'red|blue|green|yellow|orange|purple|pink|brown|white|black|silver|golden'
TOYS = {    # toy: what one does with it
    'kite': 'fly it', 'ball': 'bounce it', 'doll': 'sing to it', 'teddy bear': 'hug it',
    'train': 'push it along', 'truck': 'fill it with pebbles', 'drum': 'bang on it', 'whistle': 'blow it',
    'top': 'spin it', 'puppet': 'make it talk', 'jump rope': 'jump over it', 'hoop': 'roll it',
    'boat': 'float it in a puddle', 'frisbee': 'throw it', 'flute': 'play songs on it', 'horn': 'toot it',
    'robot': 'make it march', 'dinosaur': 'make it stomp', 'rocket': 'count down for it', 'bucket': 'fill it',
    'crown': 'play king and queen with it', 'wand': 'do magic with it', 'bell': 'ring it', 'racket': 'swing it',
    'lantern': 'signal with it', 'marble': 'roll it', 'telescope': 'look through it', 'yo-yo': 'swing it',
    'storybook': 'read it', 'pinwheel': 'hold it up in the wind', 'airplane': 'make it swoop',
    'rattle': 'shake it', 'tambourine': 'shake it', 'dollhouse': 'play house with it', 'bat': 'swing it',
    'paintbrush': 'paint with it', 'magnet': 'pick up nails with it', 'parachute': 'drop it from the wall',
    'tractor': 'drive it through the mud', 'zebra': 'let it graze', 'spaceship': 'fly it to the moon'}
CLOTHES = {     # a thing that gets lost as easily, and where it is worn
    'hat': 'on {a.his} head', 'scarf': 'around {a.his} neck', 'cap': 'on {a.his} head',
    'cape': 'over {a.his} shoulders', 'ribbon': 'around {a.his} neck', 'bow tie': 'under {a.his} chin',
    'backpack': 'on {a.his} back', 'bandana': 'around {a.his} neck', 'bonnet': 'on {a.his} head',
    'sash': 'around {a.his} waist', 'shawl': 'over {a.his} shoulders'}
FRUIT = ('apple|pear|peach|plum|cherry|banana|orange|grape|strawberry|blueberry|raspberry|blackberry|mango|'
         'melon|apricot|fig|coconut|pineapple|kiwi|gooseberry')
SNACK = ('a slice of [apple|cherry|peach|pumpkin|blueberry|plum|lemon] pie|a bowl of [tomato|pumpkin|noodle|'
         'onion|pea|potato|carrot|lentil|mushroom] soup|warm bread with [honey|butter|plum jam|cheese|jelly]|'
         'a plate of [oatmeal|ginger|chocolate|raisin|almond|butter] cookies|a [banana|corn|bran|honey] muffin|'
         'pancakes with [syrup|jam|berries|cream]|a cup of [cocoa|warm milk|apple juice|mint tea|lemonade]|'
         '[peanut butter|egg|cucumber|cheese|radish] sandwiches|a dish of [vanilla|strawberry|pistachio|'
         'caramel] ice cream|a [sticky|sugar|cinnamon] bun|a handful of [nuts|raisins|grapes|dates|popcorn]|'
         'hot waffles|a crunchy pretzel|a baked potato|rice pudding|a tart with [apricots|figs|cherries]')
MEAL = ('porridge with [raisins|honey|nuts|cinnamon]|scrambled eggs|toast and [jam|marmalade|jelly]|cereal with milk|'
        'a boiled egg|yogurt with [blueberries|peaches|kiwi|mango]|rice with beans|a [bagel|roll] with butter|'
        'two [oranges|bananas|apricots|pears]|a big bowl of oats')
BIRD = ('robin|sparrow|crow|finch|thrush|blackbird|bluebird|dove|wren|cuckoo|jay|swallow|magpie|lark|starling')
TREE = 'oak|birch|willow|pine|maple|apple|chestnut|cherry|walnut|fir|poplar|cedar|elm'
FLOWER = ('roses|daisies|tulips|violets|lilies|poppies|bluebells|daffodils|buttercups|pansies|dandelions|'
          'snowdrops|primroses|irises|peonies|geraniums')
BUG = 'butterflies|bees|dragonflies|ladybugs|beetles|moths|gnats|bumblebees'
POCKET = ('a smooth pebble|a bit of string|a pencil stub|an acorn|a penny|a blue feather|a rubber band|a snail shell|'
          'a piece of chalk|a rusty key|a pine cone|a cork|a glass bead|a postage stamp|a paper clip|'
          'a lucky coin|a peppermint|a shiny button|a wooden spool|a ticket stub')

ASIDES_K = (    # children wear clothes and have pockets
    '{a} wore a {hue2} [sweater|jacket|coat|shirt|vest] and {hue3} [boots|sneakers|shoes|sandals|socks].',
    '{a} had on {a.his} [striped|spotted|checkered|knitted|woolen|warm] [sweater|socks|shirt|vest|pajama top].',
    'In {a.his} pocket {a.he} carried {pocket1} and {pocket2}.',
    '{a} had {meal} for breakfast that day.',
    '{a} brushed {a.his} teeth, combed {a.his} hair and [tied {a.his} shoes|buttoned {a.his} coat].')
ASIDES = (
    'A {bird} [sang|whistled|called|chirped] in the {tree} tree.', 'The {flower} were in bloom.',
    '[Two|Three|Four|Five|Six|Seven] {bug} [danced|flew|whirled] through the air.',
    'The sun was [warm|bright|golden|shining].', 'The sky was [blue|clear|as blue as paint].',
    '[Small|White|Fluffy|Puffy] clouds [drifted|sailed|floated] [by|across the sky|overhead].',
    'A [soft|gentle|light|cool|warm] breeze [shook|rustled|stirred] the leaves.',
    'A [spider|caterpillar|snail|lizard|worm|beetle] [sat|rested] on a {hue2} leaf.'.replace('{hue2}', 'green'),
    'The air smelled of [{flower}|fresh grass|warm bread|mint|hay|rain|wild thyme|lavender|pine].',
    '{a} counted [three|four|five|six|seven|eight|nine|ten] [sparrows|snails|clouds|crows|{flower}|ants|pigeons].',
    '{a} hummed a [little|merry|silly|happy] tune about a [{bird}|whale|camel|goose|dancing pig|polar bear|tiger|'
    'kangaroo|hippo|walrus|sleepy cow|giraffe|penguin|purple cat|dolphin|parrot|flea].')

MOODS = {   # mood: (verbs, how, what one does before speaking)
    '': ('said', '||', '{x} [looked up|turned around|stopped|came closer].'),
    'ask': ('asked', '|| with a puzzled look', '{x} [looked up|tilted {x.his} head|blinked|turned around].'),
    'sad': ('said|sobbed|sniffed|sighed', '| sadly| in a small voice| with a lump in {x.his} throat',
            '{x} [looked down at the ground|wiped {x.his} eyes|hung {x.his} head|began to cry].'),
    'glad': ('said|cried|laughed|cheered', '| happily| with a big smile|',
             '{x} [smiled|laughed|grinned|beamed|clapped|jumped up and down].'),
    'kind': ('said', ' gently| kindly| softly| with a warm smile|',
             '{x} [smiled|nodded|sat down close by|gave {y} a hug|patted {y} on the back].'),
    'shy': ('said|whispered|mumbled', '| softly| shyly| in a tiny voice', '{x} [blushed|took a deep breath|swallowed].'),
    'cross': ('said|grumbled|snapped|growled', '| crossly| with a frown|',
              '{x} [frowned|stamped {x.his} foot|crossed {x.his} arms|made a face|shook {x.his} head].'),
    'scared': ('whispered|said|gasped', '| in a shaky voice| with wide eyes|',
               '{x} [trembled|shivered|stood very still|held {x.his} breath].'),
    'think': ('said', ' slowly| thoughtfully|', '{x} [thought for a moment|thought about it|scratched {x.his} head|nodded].')}

# -----------------------------------------------------------------------------
# the machine


class Who:
    """Someone in a tale: str() is the name; he, him, his, He and His are the pronouns."""

    def __init__(self, name, kind, female, home='', food='', joy='', hand='hand'):
        self.name, self.kind, self.home, self.food, self.hand = name, kind, home, food, hand
        self.he, self.him, self.his = ('she', 'her', 'her') if female else ('he', 'him', 'his')
        self.He, self.His = self.he.capitalize(), self.his.capitalize()
        self.joy = joy.replace('{his}', self.his)

    def __str__(self):
        return self.name


class Tale:
    """The text so far and the words in play, `w`, that templates refer to."""

    CHOICE = re.compile(r'\[([^\[\]]*)\]')     # innermost brackets

    def __init__(self, rng):
        self.random, self.w, self.text, self.told = rng.random, {}, '', set()

    def pick(self, seq):
        # random() is the one draw that Python promises to keep the same across versions
        return seq[int(self.random() * len(seq))]

    def take(self, options, n):
        """n different items, in random order."""
        options = list(options)
        return [options.pop(int(self.random() * len(options))) for _ in range(n)]

    def row(self, table):
        """A row of a plot's table; rows marked 'k' or 'n' in column 0 need children or animals."""
        return self.pick([r for r in table if r[0] in ('', self.world)])[1:]

    def fill(self, text):
        while '[' in text:
            text = self.CHOICE.sub(lambda m: self.pick(m[1].split('|')), text)
        return text.format_map(self.w)

    def let(self, **words):
        for name, template in words.items():
            self.w[name] = self.fill(template)

    def add(self, text, paragraph=False):
        gap = '' if not self.text else '\n\n' if paragraph or self.break_next else ' '
        self.text += gap + text[0].upper() + text[1:]
        self.break_next = False

    def part(self):
        """The next sentence opens a paragraph."""
        self.break_next = True

    def say(self, *templates):
        self.add(self.fill(self.pick(templates)))

    def maybe(self, *templates, p=0.5):
        if self.random() < p:
            self.say(*templates)

    def talk(self, who, words, mood=''):
        """who ('a', 'b', ...) speaks; the verb follows the mood and the first full stop."""
        x = self.w['x'] = self.w[who]
        self.w['y'] = self.w['b' if who == 'a' else 'a']
        words = self.fill(words)
        words = words[0].upper() + words[1:]
        first, _, rest = re.sub(r'([.!?]) ', r'\1\n', words, count=1).partition('\n')
        verbs, how, beat = MOODS[mood or 'ask' if first[-1] == '?' else mood]
        verb = 'asked' if first[-1] == '?' and self.random() < 0.8 else self.pick(verbs.split('|'))
        if first[-1] == '!' and verb == 'said' and self.random() < 0.5:
            verb = self.pick(('cried', 'called', 'said'))
        how, form = self.fill(self.pick(how.split('|'))), self.random()
        if form < 0.25:
            line = f'{x} {verb}{how}, "{words}"'
        elif form < 0.4:
            line = self.fill(beat) + f' "{words}"'
        else:
            first = first[:-1] + ',' if first[-1] == '.' else first
            line = f'"{first}" {verb} {x}{how}.' + (f' "{rest}"' if rest else '')
        self.add(line, paragraph=self.airy)
        self.break_next = self.airy

    def aside(self, n=1):
        """Colour: up to n small sentences, none twice in one tale."""
        pool = ASIDES + ASIDES_K if self.world == 'k' else ASIDES
        for template in self.take([t for t in pool if t not in self.told], n):
            self.told.add(template)
            self.say(template)


def tidy(text):
    """a -> an before a vowel sound, and capitals at the start of sentences."""
    text = re.sub(r'\b([Aa]) (?=[aeiou])(?!one\b|once\b|use|uni)', r'\1n ', text)
    return re.sub(r'(?<=[.!?] )[a-z]', lambda m: m[0].upper(), text)


# -----------------------------------------------------------------------------
# beats that plots share

DAY = ('One [sunny|warm|bright|quiet|fine|lovely|mild] [morning|day|afternoon]|One [Monday|Tuesday|Wednesday|'
       'Thursday|Friday|Saturday|Sunday]|On the first day of [spring|summer|vacation|May|June]|One day|'
       'One day after lunch|Early one morning')
DREAM = ('a [flying|golden|dancing|giant|sleepy] [whale|pony|boat|carrot|elephant|teapot|castle|goose|pancake]|'
         'a [river|mountain|house|ship] made of [chocolate|sugar|candy|gingerbread|jelly|feathers]|the moon and the stars')


def cast(rng):
    """A tale with its people, place and small words; a is the hero, b and c are friends, g is a grown-up."""
    s = Tale(rng)
    s.world = 'k' if s.random() < 0.6 else 'n'      # children or talking animals
    s.airy, s.break_next = s.random() < 0.5, False     # does each speaker get a new line?
    boys, girls = (s.take(names, 3) for names in ((BOYS, GIRLS) if s.world == 'k' else (HE_PETS, SHE_PETS)))
    for role, kind in zip('abc', s.take(ANIMALS, 3)):
        female = s.random() < 0.5
        name = (girls if female else boys).pop()
        s.w[role] = (Who(name, 'girl' if female else 'boy', female, s.fill(HOUSE)) if s.world == 'k'
                     else Who(name, kind, female, *ANIMALS[kind]))
    g = s.pick(list(GROWN_UPS)[:None if s.world == 'k' else 4])
    s.w['g'] = Who(g, 'grown-up', GROWN_UPS[g])
    s.w['gg'] = f'{s.w["a"].his} {g[0].lower()}{g[1:]}'      # how the grown-up is first called: his grandma
    place = s.pick([p for p in PLACES if PLACES[p][1] in ('', s.world)])
    prep, _, spots, sights = PLACES[place]
    s.w.update(place=f'the {place}', at=f'{prep} the {place}')
    for who in 'bc':    # how b and c are first called
        s.w[who * 2] = s.fill(f'[{{a.his}} friend {{{who}}}|a {{{who}.kind}} named {{{who}}}]' if s.world == 'k' else
                              f'[{{a.his}} friend {{{who}}} the {{{who}.kind}}|a {{{who}.kind}} named {{{who}}}]')
    for names, options in (('spot wrong wrong2', spots), ('hue hue2 hue3', COLORS), ('pocket1 pocket2', POCKET),
                           ('sight sight2', sights), ('hobby hobby2', HOBBIES), ('trait trait2', TRAITS)):
        s.w.update(zip(names.split(), s.take(options.split('|'), len(names.split()))))
    s.let(**{name: f'[{options}]' for name, options in (
        ('snack', SNACK), ('meal', MEAL), ('fruit', FRUIT), ('bird', BIRD), ('tree', TREE), ('flower', FLOWER),
        ('bug', BUG), ('day', DAY), ('dream', DREAM))})
    s.w['likes'] = s.w['a'].food or s.w['snack']
    return s


def opening(s):
    s.say('Once upon a time, there was a {trait} {a.kind} named {a}. {a.He} lived in {a.home}.',
          '{a} was a {trait} {a.kind} who lived in {a.home}.',
          'In {a.home}, there lived a {trait} {a.kind} named {a}.',
          'There once was a {trait} {a.kind} called {a}.',
          'Once there was a {trait} {a.kind}. {a.His} name was {a}.',
          'Not so long ago, a {trait} {a.kind} named {a} lived in {a.home}.',
          'This is the story of {a}, a {trait} {a.kind}.',
          'Everyone knew {a}, the {trait} {a.kind} from {a.home}.')
    s.maybe('{a} [loved|liked] to {hobby}.', '{a} [loved|liked] to {hobby} and to {hobby2}.',
            'Most of all, {a} liked to {hobby}.', '{a} could {hobby} all day long.',
            'What {a} liked best to eat was {likes}.', p=0.6)


def go(s, *templates):
    """Arrive at the place of the tale, and look around."""
    s.part()
    s.say(*templates)
    s.maybe('{sight}')
    s.aside(s.pick((0, 1, 1, 2)))


def lesson(s, *truths):
    """The moral, in one of several voices; truths are clauses without names or a capital."""
    truth = s.w['truth'] = s.pick(truths)
    s.w['Truth'] = truth[0].upper() + truth[1:]
    s.say('{a} [learned|had learned|found out] that {truth}.', 'That day, {a} learned that {truth}.',
          'From then on, {a} knew that {truth}.', '{a} never forgot that {truth}.', 'Now {a} knew that {truth}.',
          'And that is how {a} learned that {truth}.', 'In bed that night, {a} thought, "{Truth}."')


def bye(s):
    """A last sentence of peace, or none."""
    s.maybe('Then {a} and {b} [shared|had] {snack}.', '{a} and {b} [laughed|played|sang] together until the sun went down.',
            '{a} and {b} went home side by side.', 'The two friends stayed until it was time for supper.',
            'That night, {a} slept [well|soundly] and dreamed of {dream}.', p=0.6)


def thanks(s, who='b'):
    s.w['t'] = s.w[who]
    s.talk('a', '[Thank you, {t}!|Thank you so much, {t}.|Oh, thank you, {t}!] [You are a good friend.|'
           'You helped me so much.|I could not have done it without you.|I am so lucky to have you.|]', 'glad')


# -----------------------------------------------------------------------------
# the plots


def lost(s):
    """A treasure is lost and found where the helper says."""
    if s.random() < 0.75:
        s.w['toy'] = s.pick(list(TOYS))
        s.let(use=TOYS[s.w['toy']], fond='{a} loved to {use}.')
    else:
        s.w['toy'] = s.pick(list(CLOTHES))
        s.let(use=f'wear it', fond='{a} always wore it ' + CLOTHES[s.w['toy']] + '.')
    s.let(look='[shiny|little|new|old|pretty|striped|spotted|lovely]')
    opening(s)
    s.say('{a.He} had a {look} {hue} {toy} from {gg}. {fond}', 'For {a.his} birthday, {a} got a {look} {hue} {toy}. {fond}',
          '{a.His} favorite thing was a {look} {hue} {toy}. {fond}')
    go(s, '{day}, {a} took the {toy} to {place}.', '{day}, {a} went to {place} with the {toy}.')
    s.part()
    s.say('{a} stopped to [watch the ants|smell the {flower}|look at a {bird}|rest in the shade|eat {snack}]. '
          'When {a.he} [got up|wanted to go on], the {hue} {toy} was gone.',
          'After a while, {a} [lay down and took a nap|fell asleep in the sun]. When {a.he} woke up, the {hue} {toy} was gone.')
    s.talk('a', '[Oh no!|Oh dear!] Where is my {toy}?', 'sad')
    s.say('{a} looked {wrong} and {wrong2}, but it was not there.',
          '{a.He} looked {wrong}. {a.He} looked {wrong2}. There was no {toy}.',
          'First {a.he} looked {wrong}. Then {a.he} looked {wrong2}. It was in neither place.')
    s.part()
    s.say('Just then, {bb} came by.', 'Soon {bb} came along.', '{bb} heard {a} and came to help.')
    s.talk('b', '[What is wrong, {a}?|Why are you so sad, {a}?|What are you looking for?]', 'kind')
    s.talk('a', 'I lost my {hue} {toy}. [I looked everywhere.|I cannot find it.|I miss it so much.]', 'sad')
    way = s.pick(('saw', 'retrace', 'nest'))
    if way == 'saw':
        s.talk('b', '[Wait!|Do not cry.|Cheer up!] I saw something {hue} {spot}.', 'kind')
        s.say('{a} and {b} [ran|hurried] there together.', '{b} led the way and {a} followed.', 'They went to look at once.')
        s.part()
        s.say('There, {spot}, [lay|was] the {hue} {toy}!', 'And yes! {spot} they found the {hue} {toy}.')
    elif way == 'retrace':
        s.talk('b', 'Let us think. Where were you [before that|this morning|first]?', 'think')
        s.talk('a', '[Well, I|I think I|Hmm, I] [ate a {fruit}|played|sat] {spot}.', 'think')
        s.talk('b', '[Then let us go back and look|Then we must look there|Come on, we will try there].', 'kind')
        s.part()
        s.say('So they went back. {spot}, they saw something {hue}. It was the {toy}!',
              'They walked all the way back, and {spot} lay the {hue} {toy}.')
    else:
        s.let(thief='[kitten|puppy|baby bird|chick|bunny|duckling]' if s.world == 'k' else '[ladybug|caterpillar|beetle|cricket]')
        s.talk('b', '[I will help you look|Two can look better than one|We will find it together].', 'kind')
        s.part()
        s.say('{spot}, they heard a tiny sound. A small {thief} was hiding there, right next to the {hue} {toy}!',
              'They looked {spot}. There sat a small {thief}, and beside it was the {hue} {toy}!')
        s.say('The {thief} [was cold and wanted company|had thought that the {toy} was a friend|was lost, too]. '
              '{a} [stroked it gently|gave it a bit of {fruit}|made it a bed of leaves], and [it fell asleep|it was happy].')
    thanks(s)
    if s.random() < 0.5:
        s.talk('a', 'Do you want to {use} with me?' if s.w['use'] != 'wear it' else 'Do you want to try it on?', 'glad')
        s.say('{b} said yes, and they had a [wonderful|lovely|grand|fine] time.', '{b} was glad, and the two friends had lots of fun.')
    else:
        s.say('{a} held the {toy} tight all the way home.', '{a} [hugged|squeezed] {b} and then the {toy}.')
    s.maybe('From then on, {a} [kept an eye on|took good care of] the {hue} {toy}.')
    lesson(s, 'looking for something is easier with a friend', 'it is good to ask for help', 'two pairs of eyes are better than one',
           'it helps to stay calm and think')
    bye(s)


PLOTS = [lost]


def stories(seed=1337, count=24000):
    """Yield `count` pairwise distinct stories; a smaller count gives the beginning of the same list."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        s = cast(rng)
        s.pick(PLOTS)(s)
        text = tidy(s.text)
        sentences = re.split(r'(?<=[.!?"])\s+', text)
        key = hashlib.sha1(text.encode()).digest()
        # draw again: too short or long, a sentence told twice, or a story told before
        if 80 <= len(text.split()) <= 250 and len(set(sentences)) == len(sentences) and key not in seen:
            seen.add(key)
            yield text


if __name__ == '__main__':
    for story in stories(seed=random.randrange(10**6), count=5):
        print(story, end='\n\n' + 79 * '-' + '\n\n')
