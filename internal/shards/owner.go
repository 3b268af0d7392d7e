package shards

import (
	"cmp"
	"slices"
)

// An Owner is a member's side of the protocol in one term: what the table gives it, and what it has to say of that. It
// is not safe for concurrent use.
//
// The key of a grant is live from when Apply returns it to be started until Apply returns it to be stopped, or Returned
// is called. It is over, for good, only when its work has returned, and only that is reported.
type Owner struct {
	term    Term
	weight  int
	own     string // the digest of the keys that it knows; "" in a ring
	buckets int    // of a ring
	past    *Past
	accepts func(key string) bool

	epoch, gen, mark uint64
	digest           string // of the keys of the table of gen
	bad              uint64
	ending           bool   // the work of an epoch that is over has not returned
	applied          int    // how many tables were
	told             uint64 // the generation at which there was last something to report
	grants           map[string]*grant
	working          int               // how many of the grants are running
	reportable       map[string]*grant // those that were asked back, or given back: reports say something of them
}

// A grant is one key that the table gives to the term.
type grant struct {
	index    int // of the key in the table of gen
	applied  int // the last table that had it
	given    uint64
	asked    uint64
	running  bool // the work has not returned
	returned bool // given back without being asked
	failed   bool
}

// Past are the last 64 epochs that the terms of a process have left. They do not return to these.
type Past struct{ epochs []uint64 }

// maxPast is how many epochs are remembered.
const maxPast = 64

func (p *Past) add(epoch uint64) {
	p.epochs = append(p.epochs, epoch)
	p.epochs = p.epochs[max(0, len(p.epochs)-maxPast):]
}

func (p *Past) has(epoch uint64) bool { return slices.Contains(p.epochs, epoch) }

// NewOwner returns the owner of a term that has read no table yet. A key that accepts refuses is given back at once.
func NewOwner(term Term, weight int, own string, buckets int, past *Past, accepts func(key string) bool) *Owner {
	return &Owner{
		term: term, weight: weight, own: own, buckets: buckets, past: past, accepts: accepts,
		grants: map[string]*grant{}, reportable: map[string]*grant{},
	}
}

// A Change is what a table changes for its reader.
type Change struct {
	Start []string // the keys whose work is to begin
	Stop  []string // the keys whose work is to end, because they are asked back
	End   bool     // all work is to end: the table that it relied on is gone
	Tell  bool     // there is something to report that waits for no work
}

// Apply goes by table t, whose keys have names; it gives nothing if there is another number of them. The table was read
// in the term, and is not older than any that was applied before.
func (o *Owner) Apply(t *Table, names []string) Change {
	if t.Epoch != o.epoch {
		switch {
		case o.past.has(t.Epoch):
			return o.object(t)
		case o.epoch != 0 && !o.ending:
			o.ending = true
			o.past.add(o.epoch)
			if o.working > 0 {
				return Change{End: true}
			}
		}
		if o.working > 0 {
			return Change{}
		}
		o.enter(t.Epoch)
	} else if o.gen != 0 {
		if _, contradicts := t.marked(o.gen, o.mark); contradicts {
			return o.object(t)
		}
		if o.bad == t.Epoch || o.ending {
			return Change{}
		}
	}
	first, otherKeys := o.gen == 0, o.digest != t.Keys
	o.gen, o.mark, o.digest, o.bad = t.Gen, t.Mark(), t.Keys, 0
	c := o.compare(t, names)
	// A report counts for one order of the keys, and for as long as tables have the mark of its generation.
	outdated := otherKeys || t.Gen >= o.told+keptMarks/2
	if c.Tell = c.Tell || first || outdated && o.unheard(t); c.Tell {
		o.told = t.Gen
	}
	return c
}

// enter begins an epoch, 0 for none, without grants.
func (o *Owner) enter(epoch uint64) {
	o.epoch, o.gen, o.mark, o.bad, o.ending = epoch, 0, 0, 0, false
	clear(o.grants)
	clear(o.reportable)
}

// object reports t, which cannot come after the table that the owner went by.
func (o *Owner) object(t *Table) Change {
	c := Change{Tell: o.bad != t.Epoch}
	o.bad = t.Epoch
	return c
}

// compare makes the grants those of t.
func (o *Owner) compare(t *Table, names []string) Change {
	var c Change
	row := t.row(o.term)
	if len(names) != len(t.Entries) {
		row = nobody // it shares out other keys
	}
	o.applied++
	for i, e := range t.Entries {
		if e.Owner != row || row == nobody {
			continue
		}
		name := names[i]
		g := o.grants[name]
		if g == nil || g.given != e.Given && !g.running {
			g = &grant{given: e.Given}
			o.grants[name] = g
			if o.accepts(name) && e.Asked == 0 {
				g.running = true
				o.working++
				delete(o.reportable, name)
				c.Start = append(c.Start, name)
			} else {
				g.returned, c.Tell = true, true
				o.reportable[name] = g
			}
		}
		g.index, g.applied = i, o.applied
		if e.Asked != 0 && g.asked == 0 {
			g.asked = e.Asked
			o.reportable[name] = g
			if g.running {
				c.Stop = append(c.Stop, name)
			} else {
				c.Tell = true
			}
		}
	}
	for name, g := range o.grants {
		switch {
		case g.applied == o.applied:
		case !g.running:
			delete(o.grants, name)
			delete(o.reportable, name)
		case g.asked == 0: // taken away without being asked for: by hand
			g.asked = t.Gen
			o.reportable[name] = g
			c.Stop = append(c.Stop, name)
		}
	}
	slices.Sort(c.Stop)
	return c
}

// Abandon leaves the epoch because the table is one that the member cannot go by. If work is to end before that, Ending
// reports it, and Abandon is to be called again.
func (o *Owner) Abandon() Change {
	if o.epoch == 0 {
		return Change{}
	}
	c := Change{End: !o.ending}
	if c.End {
		o.ending = true
		o.past.add(o.epoch)
	}
	if o.working == 0 {
		o.enter(0)
		c.Tell = true
	}
	return c
}

// Returned says that the work on key has returned, or that it is given back.
func (o *Owner) Returned(key string, failed bool) {
	if g := o.grants[key]; g != nil && g.running {
		g.running, g.returned, g.failed = false, true, failed
		o.working--
		o.reportable[key] = g
	}
}

// Stopping reports whether work goes on that is to end: of keys that were asked back or, once the member leaves, of
// all.
func (o *Owner) Stopping() bool {
	if o.weight == 0 {
		return o.working > 0
	}
	for _, g := range o.reportable {
		if g.running {
			return true
		}
	}
	return false
}

// Keeps reports whether work goes on of a key that was not asked back.
func (o *Owner) Keeps() bool {
	stopping := 0
	for _, g := range o.reportable {
		if g.running {
			stopping++
		}
	}
	return o.working > stopping
}

// Told says that the others are about to be told of all that has returned.
func (o *Owner) Told() { o.told = o.gen }

// Leave says that the member wants no more keys.
func (o *Owner) Leave() { o.weight = 0 }

// Know says which keys the member knows now, by their digest.
func (o *Owner) Know(own string) { o.own = own }

// Ending reports whether the work of an epoch that is over has not returned yet. Apply is to be called again then.
func (o *Owner) Ending() bool { return o.ending }

// Report returns what the member has to say. Refused are the keys that it cannot have now.
func (o *Owner) Report(refused []int) Report {
	r := Report{
		Acquired: o.term.Acquired, Epoch: o.epoch, Gen: o.gen, Mark: o.mark, Bad: o.bad,
		Keys: o.digest, Own: o.own, Buckets: o.buckets, Weight: o.weight, Refused: refused,
	}
	for _, g := range o.reportable {
		switch {
		case g.running:
			r.Running = append(r.Running, g.index)
		case g.returned && g.asked == 0:
			r.Returned = append(r.Returned, Return{g.index, g.given, g.failed})
		}
	}
	slices.Sort(r.Running)
	slices.SortFunc(r.Returned, func(a, b Return) int { return cmp.Compare(a.Key, b.Key) })
	return r
}

// Unanswered reports whether t, the newest table, has not done what the member asked of it: list its term, and drop
// what it gave back.
func (o *Owner) Unanswered(t *Table) bool {
	if t.Epoch != o.epoch || o.bad != 0 || !t.Open {
		return true
	}
	if t.row(o.term) == nobody {
		return o.weight > 0
	}
	return o.unheard(t)
}

// unheard reports whether t gives the member what it gave back.
func (o *Owner) unheard(t *Table) bool {
	row := t.row(o.term)
	for _, g := range o.reportable {
		if g.index < len(t.Entries) && !g.running && t.Entries[g.index].Owner == row {
			return row != nobody
		}
	}
	return false
}
