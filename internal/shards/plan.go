package shards

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// A Member is a term that is live as far as its Lease was seen, with what it reports.
type Member struct {
	Row
	Report Report   // of this term; the zero Report until there is one
	Knows  []string // the keys with names that it knows, sorted
	New    bool     // no keys move to it yet
}

// A Plan is what the next table is made of. It decides by evidence that stays true: what members reported, and that
// terms have ended. What it does not know yet, it leaves as it is.
//
// A plan is a value: all that decides is in it, and nothing of it changes, so that Same can compare it.
type Plan struct {
	Table    *Table
	Names    []string        // of the table's keys; nil in a ring
	Assigner Row             // who writes the next table
	Members  []Member        // all that are live, and have reported the table's epoch, in a fixed order
	Moves    int             // how many keys may be moving at once
	Open     bool            // keys may be given from now on
	Ended    []bool          // by row of the table: its term is certainly over
	Resumes  []bool          // by row: its Lease shows a later term that is live, and about to resume what it had
	Rests    map[string]bool // the keys that are not given out yet
	Holds    bool            // none is given out yet
}

// Same reports whether p decides what other decides, because both say the same. In which version a Lease was seen, and
// which table its holder had seen then, decides nothing.
func (p *Plan) Same(other *Plan) bool {
	return other != nil && reflect.DeepEqual(p.essence(), other.essence())
}

// essence returns p without what decides nothing.
func (p *Plan) essence() Plan {
	e := *p
	e.Assigner.Seen = 0
	e.Members = slices.Clone(p.Members)
	for i := range e.Members {
		e.Members[i].Seen, e.Members[i].Report.Version = 0, 0
	}
	return e
}

// A Next is what a plan decides.
type Next struct {
	Table   *Table
	Names   []string        // of its keys; nil in a ring
	Freed   map[string]bool // the keys that were given back unasked by members that stay: whether their work failed
	Changed bool            // the table says anything new
}

// Contradicts reports whether a live term's report proves that the table is not the one that the group went by.
func (t *Table) Contradicts(r Report) bool {
	switch {
	case r.Bad == t.Epoch:
		return true
	case r.Epoch == 0:
		return false
	case r.Epoch != t.Epoch:
		return t.Open
	}
	_, contradicts := t.marked(r.Gen, r.Mark)
	return contradicts
}

// NewTable returns the first table of an epoch, whose generation comes after that of old if that is not nil. It gives
// nothing until Open.
func NewTable(old *Table, epoch, mark uint64, assigner Row, buckets int) *Table {
	t := &Table{
		Epoch: epoch, Gen: 1, Marks: []uint64{mark}, Assigner: assigner.Term, Buckets: buckets, Rows: []Row{assigner},
	}
	if old != nil {
		t.Gen = old.Gen + 1
	}
	if buckets > 0 {
		t.Entries = slices.Repeat([]Entry{{Owner: nobody}}, buckets)
	} else {
		t.Keys = Digest(nil)
	}
	return t
}

// Next returns the next table, with a random mark. Whether it says anything new does not depend on the mark. Keys that
// were just freed rest.
func (p *Plan) Next(mark uint64) Next {
	old := p.Table
	next := old.next(mark)
	next.Assigner = p.Assigner.Term
	next.Open = old.Open || p.Open
	p.fillRows(next)
	names, entries, freed := p.keep(next)
	next.Entries = entries
	if old.Buckets == 0 && !same(names, p.Names) {
		next.Keys = Digest(names)
	}
	changed := p.share(next, names, freed)
	p.dropRows(next)
	changed = changed || next.Assigner != old.Assigner || next.Keys != old.Keys || !p.equal(next)
	return Next{next, names, freed, changed}
}

// fillRows gives next a row for each member, and keeps those of others that own something.
func (p *Plan) fillRows(next *Table) {
	next.Rows = slices.Clone(p.Table.Rows)
	for _, m := range append([]Member{{Row: p.Assigner}}, p.Members...) {
		if i := next.row(m.Term); i >= 0 {
			next.Rows[i] = m.Row
		} else {
			next.Rows = append(next.Rows, m.Row)
		}
	}
}

// member returns the index in Members of the term, or nobody.
func (p *Plan) member(term Term) int {
	return slices.IndexFunc(p.Members, func(m Member) bool { return m.Term == term })
}

// keep returns the entries of the next table, as far as they follow from the old one, the names of its keys, and which
// of them were freed.
func (p *Plan) keep(next *Table) (names []string, entries []Entry, freed map[string]bool) {
	old := p.Table
	change := p.newTransition(next)
	kept := make([]Entry, len(old.Entries))
	for i, e := range old.Entries {
		kept[i] = change.entry(i, e)
	}
	known := p.known()
	if old.Buckets > 0 || same(known, p.Names) {
		return p.Names, kept, change.freed
	}
	var owned []string
	for i, e := range kept {
		if e.Owner != nobody {
			owned = append(owned, p.Names[i])
		}
	}
	names = union(known, owned)
	entries = make([]Entry, len(names))
	had := 0
	for i, key := range names {
		for had < len(kept) && p.Names[had] < key {
			had++
		}
		if entries[i] = (Entry{Owner: nobody}); had < len(kept) && p.Names[had] == key {
			entries[i] = kept[had]
		}
	}
	return names, entries, change.freed
}

// known returns the keys that members know, sorted.
func (p *Plan) known() []string {
	var known []string
	for i, m := range p.Members {
		if !slices.ContainsFunc(p.Members[:i], func(other Member) bool { return same(other.Knows, m.Knows) }) {
			known = union(known, m.Knows)
		}
	}
	return known
}

// same reports whether a and b are one slice. Members whose sets of keys have the same digest share one.
func same(a, b []string) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// union returns what is in a, in b or in both, all of them sorted.
func union(a, b []string) []string {
	switch {
	case len(a) == 0 || same(a, b):
		return b
	case len(b) == 0:
		return a
	}
	all := make([]string, 0, max(len(a), len(b)))
	for len(a) > 0 && len(b) > 0 {
		switch order := strings.Compare(a[0], b[0]); {
		case order < 0:
			all, a = append(all, a[0]), a[1:]
		case order > 0:
			all, b = append(all, b[0]), b[1:]
		default:
			all, a, b = append(all, a[0]), a[1:], b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// A transition decides what becomes of the entries of a table in the next one, by what is known of their owners.
type transition struct {
	plan   *Plan
	next   *Table
	owners []ownerState    // by row of the old table
	freed  map[string]bool // the keys that were given back unasked by members that stay: whether their work failed
}

// An ownerState is what is known of the owner of entries.
type ownerState struct {
	row      int  // in the next table
	ended    bool // its term is certainly over
	resumes  bool // its member is about to report in a new term
	leaving  bool // its member wants no more keys
	heir     int  // the row of its member's new term, or nobody
	running  map[int]bool
	returned map[int]Return
	acked    uint64 // what was asked back up to this generation is over, but for running
}

func (p *Plan) newTransition(next *Table) *transition {
	tr := &transition{p, next, make([]ownerState, len(p.Table.Rows)), map[string]bool{}}
	for i, r := range p.Table.Rows {
		s := &tr.owners[i]
		s.row, s.heir = next.row(r.Term), nobody
		s.ended = p.Ended[i]
		if s.ended {
			s.resumes = p.Resumes[i]
			if m := slices.IndexFunc(p.Members, func(m Member) bool { return m.Lease == r.Lease }); m >= 0 {
				s.heir = next.row(p.Members[m].Term)
			}
			continue
		}
		m := p.member(r.Term)
		if m == nobody {
			continue
		}
		report := p.Members[m].Report
		s.leaving = report.Weight == 0
		if confirms, _ := p.Table.marked(report.Gen, report.Mark); !confirms ||
			report.Epoch != p.Table.Epoch || report.Keys != p.Table.Keys {
			continue // it says nothing of this table
		}
		s.acked = report.Gen
		s.running = map[int]bool{}
		for _, key := range report.Running {
			s.running[key] = true
		}
		s.returned = map[int]Return{}
		for _, r := range report.Returned {
			s.returned[r.Key] = r
		}
	}
	return tr
}

// entry returns what becomes of entry e, the one with index i.
func (tr *transition) entry(i int, e Entry) Entry {
	free := Entry{Owner: nobody}
	if e.Owner == nobody {
		return free
	}
	s := tr.owners[e.Owner]
	kept := Entry{s.row, e.Given, e.Asked}
	switch {
	case s.ended && s.heir != nobody && e.Asked == 0:
		return Entry{Owner: s.heir, Given: tr.next.Gen}
	case s.ended && s.resumes:
		return kept
	case s.ended:
		return free
	case e.Asked != 0 && e.Asked <= s.acked && !s.running[i]:
		return free
	case e.Asked == 0:
		if r, ok := s.returned[i]; ok && r.Given == e.Given {
			if !s.leaving {
				tr.freed[nameOf(tr.plan.Names, i)] = r.Failed
			}
			return free
		}
	}
	return kept
}

// nameOf returns the name of the key with index i: its number in a ring, whose names are nil.
func nameOf(names []string, i int) string {
	if names == nil {
		return strconv.Itoa(i)
	}
	return names[i]
}

// rests reports whether the key with index i is not given out yet.
func (p *Plan) rests(names []string, i int, freed map[string]bool) bool {
	if p.Holds || len(p.Rests) == 0 && len(freed) == 0 {
		return p.Holds
	}
	name := nameOf(names, i)
	_, justFreed := freed[name]
	return justFreed || p.Rests[name]
}

// share gives out the keys that nobody owns, but for those that rest, and asks back those that others are to own.
func (p *Plan) share(next *Table, names []string, freed map[string]bool) (changed bool) {
	if !next.Open {
		return false
	}
	var sharers []sharer
	var members, rows []int // by sharer
	bySharer := map[int]int{}
	for i, m := range p.Members {
		if m.Weight > 0 {
			row := next.row(m.Term)
			bySharer[row] = len(sharers)
			sharers = append(sharers, sharer{m.Weight, !m.New})
			members, rows = append(members, i), append(rows, row)
		}
	}
	d := division{sharers: sharers, owner: make([]int, len(next.Entries)), moves: p.Moves}
	for i, e := range next.Entries {
		d.owner[i] = nobody
		switch s, ok := bySharer[e.Owner]; {
		case e.Owner == nobody:
		case e.Asked != 0:
			d.moves--
		case ok:
			d.owner[i] = s
		}
	}
	d.moves = max(d.moves, 0)
	d.class, d.knows = p.classes(next, names, members)
	for i, want := range assign(d) {
		e := &next.Entries[i]
		switch {
		case e.Owner == nobody:
			if want != nobody && !p.rests(names, i, freed) {
				*e = Entry{Owner: rows[want], Given: next.Gen}
				changed = true
			}
		case d.owner[i] != nobody && want != d.owner[i]:
			e.Asked = next.Gen
			changed = true
		}
	}
	return changed
}

// classes returns the class of each key, and by class which of the members may have it; nil if all may have all.
func (p *Plan) classes(next *Table, names []string, members []int) (class []int, knows [][]bool) {
	var picky []int  // the members that may not have all
	var may [][]byte // by these, and by key: 1 if they may
	for s, m := range members {
		if keys := p.mayHave(next, names, p.Members[m]); keys != nil {
			picky, may = append(picky, s), append(may, keys)
		}
	}
	if picky == nil {
		return nil, nil
	}
	class = make([]int, len(next.Entries))
	byMay := map[string]int{}
	key := make([]byte, len(picky))
	for i := range class {
		for s := range picky {
			key[s] = may[s][i]
		}
		c, ok := byMay[string(key)]
		if !ok {
			c = len(knows)
			byMay[string(key)] = c
			row := slices.Repeat([]bool{true}, len(members))
			for s, member := range picky {
				row[member] = key[s] == 1
			}
			knows = append(knows, row)
		}
		class[i] = c
	}
	return class, knows
}

// mayHave returns by key 1 if m may have it, because m knows it and does not refuse it; nil if it may have all.
func (p *Plan) mayHave(next *Table, names []string, m Member) []byte {
	all := next.Buckets > 0 || same(m.Knows, names)
	refuses := len(m.Report.Refused) > 0 && m.Report.Keys == p.Table.Keys
	if all && !refuses {
		return nil
	}
	may := make([]byte, len(next.Entries))
	knows := m.Knows
	for i := range may {
		for !all && len(knows) > 0 && knows[0] < names[i] {
			knows = knows[1:]
		}
		if all || len(knows) > 0 && knows[0] == names[i] {
			may[i] = 1
		}
	}
	if !refuses {
		return may
	}
	for _, i := range m.Report.Refused {
		known := i < len(p.Table.Entries)
		if known && next.Buckets == 0 {
			i, known = slices.BinarySearch(names, p.Names[i])
		}
		if known {
			may[i] = 0
		}
	}
	return may
}

// dropRows removes the rows of terms that have ended and own nothing, and gives the entries the new indexes.
func (p *Plan) dropRows(next *Table) {
	owns := make([]bool, len(next.Rows))
	for _, e := range next.Entries {
		if e.Owner != nobody {
			owns[e.Owner] = true
		}
	}
	index := make([]int, len(next.Rows))
	var rows []Row
	for i, r := range next.Rows {
		index[i] = len(rows)
		ended := i < len(p.Ended) && p.Ended[i] // rows that the old table did not have come last
		if owns[i] || r.Term == next.Assigner || p.member(r.Term) != nobody || !ended {
			rows = append(rows, r)
		}
	}
	next.Rows = rows
	for i, e := range next.Entries {
		if e.Owner != nobody {
			next.Entries[i].Owner = index[e.Owner]
		}
	}
}

// equal reports whether next says what the old table said, with other words at most.
func (p *Plan) equal(next *Table) bool {
	old := p.Table
	if len(next.Rows) != len(old.Rows) || len(next.Entries) != len(old.Entries) || next.Open != old.Open {
		return false
	}
	for i, r := range next.Rows {
		o := old.Rows[i]
		if r.Term != o.Term || r.Identity != o.Identity || r.Weight != o.Weight {
			return false
		}
	}
	return slices.Equal(next.Entries, old.Entries)
}
