package main

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// A history is all records of a run.
type history struct {
	start     time.Duration
	records   []record
	decisions []decision         // of the store
	events    map[string][]event // by lease
	pages     map[string]string  // of sets of keys of groups, by lease
	faults    []fault
}

// read adds the journals of the candidates and the store in dir.
func (h *history) read(dir string) error {
	journals, err := filepath.Glob(filepath.Join(dir, "*.journal"))
	if err != nil {
		return err
	}
	for _, file := range journals {
		if err := readLines(file, func(r record) { h.records = append(h.records, r) }); err != nil {
			return err
		}
	}
	return readLines(filepath.Join(dir, storeJournal), func(d decision) { h.decisions = append(h.decisions, d) })
}

// A session is the records of one session. It was live at some instant of each of its looks, and therefore at all
// times from the first to the last of these instants.
type session struct {
	beginning
	id    string
	looks []record
	end   *record // nil if its process ended before

	excused bool // it outlived its lease, and leasehold was not the cause
}

func (s *session) first() record { return s.looks[0] }
func (s *session) last() record  { return s.looks[len(s.looks)-1] }

func (s *session) String() string {
	if s.Kind == elector {
		return fmt.Sprintf("%s (%s)", s.id, s.Kind)
	}
	return fmt.Sprintf("%s (token %d)", s.id, s.Token)
}

// precedes reports whether a can have ended before b began.
func precedes(a, b *session) bool { return a.last().Before <= b.first().After }

// overlap returns for how long both were live at least.
func overlap(a, b *session) time.Duration {
	return min(a.last().Before, b.last().Before) - max(a.first().After, b.first().After)
}

// A violation is a broken guarantee, or a failure of the harness.
type violation struct {
	Lease    string
	Text     string
	From, To time.Duration // when it happened
}

// A result is what the checks found.
type result struct {
	violations []violation
	excused    []violation           // overlaps that leasehold did not cause
	byLease    map[string][]*session // sessions that were live, in the order of their first looks
	sessions   map[string]int        // by lease
	byKind     map[kind]int
	handovers  int
	losses     map[string]int // by reason
	looks      int

	// Overlaps by their cause. Those of leasehold are violations as well.
	overlaps map[string]int
	longest  map[string]time.Duration

	late      int // writes with a token that were sent after a newer session was live
	fenced    int // of these, the refused ones
	early     int // of these, the ones accepted because no newer leader had written yet
	unfenced  int // writes with a token that reached the unfenced register after one with a greater token
	lateElect int // writes of client-go's leaders after another session was live: nothing fences them

	groups groupResult
}

// Causes of overlaps.
const (
	oursFault   = "leasehold"
	theirsFault = "client-go"
	byHand      = "by hand"
)

func check(h history) *result {
	v := &result{
		sessions: map[string]int{}, byKind: map[kind]int{}, losses: map[string]int{}, overlaps: map[string]int{},
		longest: map[string]time.Duration{},
	}
	v.byLease = v.sort(h)
	for lease, sessions := range v.byLease {
		v.exclusion(h, lease, sessions)
		v.fencing(lease, sessions)
		for i := 1; i < len(sessions) && !isKey(lease); i++ {
			if sessions[i].Candidate != sessions[i-1].Candidate {
				v.handovers++
			}
		}
	}
	v.countGroups(h)
	v.store(h.decisions)
	slices.SortStableFunc(v.violations, func(a, b violation) int { return cmp.Compare(a.From, b.From) })
	return v
}

func (v *result) violate(lease string, from, to time.Duration, format string, args ...any) {
	v.violations = append(v.violations, violation{lease, fmt.Sprintf(format, args...), from, to})
}

var quoted = regexp.MustCompile(`"[^"]*"`)

// sort returns the sessions that were live, by lease and in the order of their first looks.
func (v *result) sort(h history) map[string][]*session {
	all := map[string]*session{}
	for _, r := range h.records {
		s := all[r.Session]
		if s == nil {
			s = &session{id: r.Session}
			all[r.Session] = s
		}
		switch r.What {
		case begin:
			s.beginning = *r.Of
			v.sessions[groupOf(s.Lease)]++
			v.byKind[s.Kind]++
		case look:
			s.looks = append(s.looks, r)
			v.looks++
		case end:
			s.end = &r
			if r.Lost && !isKey(s.Lease) {
				v.losses[quoted.ReplaceAllString(r.Why, `"…"`)]++
			}
		}
	}
	byLease := map[string][]*session{}
	for _, s := range all {
		if len(s.looks) > 0 {
			byLease[s.Lease] = append(byLease[s.Lease], s)
		}
	}
	for _, sessions := range byLease {
		slices.SortFunc(sessions, func(a, b *session) int { return cmp.Compare(a.first().After, b.first().After) })
	}
	return byLease
}

// exclusion checks all pairs of sessions: one must have ended before the other began, and the first must have the
// smaller token. The order in which sessions began is not known, as oracle.Keys has to know it: a look says that its
// session was live at some instant between two.
func (v *result) exclusion(h history, lease string, sessions []*session) {
	for i, a := range sessions {
		for _, b := range sessions[i+1:] {
			v.pair(h, lease, a, b)
		}
	}
}

// pair checks two sessions, of which a was live first.
func (v *result) pair(h history, lease string, a, b *session) {
	if a.Token != 0 && b.Token != 0 {
		if a.Token == b.Token {
			v.violate(lease, a.first().Before, b.first().After, "%v and %v have the same token", a, b)
			return
		}
		if a.Token > b.Token {
			a, b = b, a
		}
		if precedes(a, b) {
			return
		}
	} else if precedes(a, b) || precedes(b, a) {
		return
	}
	from, to := max(a.first().Before, b.first().Before), a.last().After
	whose, why := h.fault(lease, a, b)
	v.overlaps[whose]++
	v.longest[whose] = max(v.longest[whose], overlap(a, b))
	if whose != oursFault {
		a.excused = a.excused || a.Token != 0 && b.Token != 0
		v.excused = append(v.excused,
			violation{lease, fmt.Sprintf("%v beside %v for %v: %s: %s", a, b, overlap(a, b), whose, why), from, to})
		return
	}
	if overlap(a, b) > 0 {
		v.violate(lease, from, to, "%v and %v were live together for %v: %s", a, b, overlap(a, b), why)
	} else {
		v.violate(lease, from, to, "%v was live after %v, whose token is greater: %s", a, b, why)
	}
}

// fault returns the cause of an overlap and its description.
//
// leasehold is not the cause where a holder of client-go leads past its deadline or releases a lease that it has
// lost, nor where the operator made an edit that docs/safety.md lists under Limits: freed or reassigned the lease
// while its holder led, shortened its duration, or deleted it while a candidate had not seen its whole term.
//
// No edit of a group's Leases that is made excuses an overlap.
func (h history) fault(lease string, a, b *session) (whose, why string) {
	if isKey(lease) {
		return oursFault, "the key was the first's"
	}
	if a.Kind == elector && b.Kind == elector {
		return theirsFault, "both are client-go's"
	}
	if b.Kind != elector && a.Kind == elector {
		a, b = b, a
	}
	// a is leasehold's.
	events := h.events[lease]
	i := slices.IndexFunc(events, func(e event) bool { return e.Version == a.Token })
	if i < 0 {
		return oursFault, "no event has the token of the first"
	}
	if b.Kind == elector && b.first().After < bootTime(events[i].Acquired) {
		return theirsFault, "it led on an earlier term, or before it had one"
	}
	own := events[i].term()
	for i++; i < len(events) && events[i].term() == own; i++ {
		if e := events[i]; e.ByHand && e.Duration < events[i-1].Duration {
			return h.byHand(a, e, "its duration was cut")
		}
	}
	if i == len(events) {
		if b.Kind == elector {
			return theirsFault, "the lease was still the other's"
		}
		return oursFault, "the lease was still the first's"
	}
	e := events[i]
	switch {
	case e.Deleted && b.Kind != elector && h.sawTerm(b, events[i-1], e):
		return oursFault, "the Lease was deleted, which the second candidate could see"
	case e.ByHand:
		return h.byHand(a, e, "it was taken from its holder")
	case e.EmptyString:
		return theirsFault, "an elector released the other's lease"
	case b.Kind == elector && (e.Holder != b.Identity || b.first().After < bootTime(e.Acquired)):
		return theirsFault, "it led on an earlier term, or before it had one"
	}
	return oursFault, fmt.Sprintf("%q took the lease at version %d", e.Holder, e.Version)
}

// byHand excuses an overlap that the operator caused, for as long as the holder may trust its last renewal.
func (h history) byHand(a *session, e event, what string) (whose, why string) {
	if after := a.last().Before - e.At; after > a.Deadline {
		return oursFault,
			fmt.Sprintf("%s by hand, and the holder led on for %v after that, longer than its renew deadline", what,
				after)
	}
	return byHand, what
}

// bootTime converts a wall-clock time of this machine to CLOCK_BOOTTIME.
func bootTime(wall time.Time) time.Duration { return boottime.Now() - time.Since(wall.Round(0)) }

// sawTerm reports whether a session's candidate could see the whole term that ended with a deletion, without a fault:
// then it must wait until the term would have expired.
func (h history) sawTerm(b *session, last, deletion event) bool {
	acquired := bootTime(last.Acquired)
	if b.Started > acquired-time.Second {
		return false
	}
	return !slices.ContainsFunc(h.faults, func(f fault) bool {
		return f.Lease == "" && (f.Candidate == "" || f.Candidate == b.Candidate) &&
			f.From < deletion.At+time.Second && f.To > acquired-5*time.Second
	})
}

// fencing counts late writes and finds sessions that were live after the store had refused them.
func (v *result) fencing(lease string, sessions []*session) {
	for i, s := range sessions {
		newer := time.Duration(math.MaxInt64) // when a later session was first live
		for _, next := range sessions[i+1:] {
			if s.Token == 0 || next.Token > s.Token {
				newer = min(newer, next.first().After)
			}
		}
		for n, l := range s.looks {
			if l.Refused && n+1 < len(s.looks) && !s.excused {
				v.violate(lease, l.Before, l.Done, "%v was live after the store had refused it", s)
				s.excused = true // one violation is enough
			}
			switch {
			case l.Sent <= newer:
			case s.Token == 0:
				v.lateElect++
			case l.Refused:
				v.late++
				v.fenced++
			default:
				v.late++
				v.early++
			}
		}
	}
}

// store checks the decisions of the store and counts the writes that fencing stopped.
func (v *result) store(decisions []decision) {
	highest, accepted := map[string]uint64{}, map[string]uint64{}
	for _, d := range decisions {
		if d.Token == 0 {
			continue
		}
		if d.Token < highest[d.Lease] {
			v.unfenced++
		}
		highest[d.Lease] = max(highest[d.Lease], d.Token)
		if !d.Accepted {
			continue
		}
		if d.Token < accepted[d.Lease] {
			v.violate(d.Lease, d.At, d.At, "the store accepted a write of %s (token %d) after one with token %d",
				d.Session, d.Token, accepted[d.Lease])
		}
		accepted[d.Lease] = max(accepted[d.Lease], d.Token)
	}
}

// around describes what happened to a lease around a time, in a limited number of lines.
func (h history) around(lease string, from, to time.Duration, sessions []*session) string {
	type line struct {
		at   time.Duration
		text string
	}
	var lines []line
	add := func(at time.Duration, format string, args ...any) {
		if at >= from-8*time.Second && at <= to+4*time.Second {
			lines = append(lines, line{at, fmt.Sprintf(format, args...)})
		}
	}
	for _, s := range sessions {
		if s.Lease != lease {
			continue
		}
		add(s.first().After, "%v live for the first time, campaigned since %.2f s", s, (s.Since - h.start).Seconds())
		add(s.last().Before, "%v live for the last time", s)
		gap := s.first()
		for _, l := range s.looks {
			if l.Refused {
				add(l.Sent, "%v writes and is refused", s)
			}
			if l.Before-gap.After > time.Second {
				add(gap.After, "%v is last live before a gap of %v", s, l.Before-gap.After)
				add(l.Before, "%v is live after the gap", s)
			}
			gap = l
		}
		if s.end != nil {
			add(s.end.After, "%v ends: %s", s, s.end.Why)
		}
	}
	if isKey(lease) {
		h.keyLines(lease, add)
	}
	for i, e := range h.events[lease] {
		var before event
		if i > 0 {
			before = h.events[lease][i-1]
		}
		hand := ""
		if e.ByHand {
			hand = " by hand"
		}
		switch {
		case e.Deleted:
			add(e.At, "    version %d: deleted", e.Version)
		case e.term() != before.term():
			add(e.At, "    version %d: holder %q%s, for %v", e.Version, e.Holder, hand, e.Duration)
		case e.Duration != before.Duration || e.ByHand:
			add(e.At, "    version %d: changed%s, for %v", e.Version, hand, e.Duration)
		default:
			add(e.At, "    version %d: renewed at %.3f s", e.Version, (bootTime(e.Renewed) - h.start).Seconds())
		}
	}
	for _, f := range h.faults {
		if f.Lease == "" || f.Lease == lease || isKey(lease) && strings.HasPrefix(f.Lease, groupOf(lease)) {
			add(f.From, "        %s", f.Text)
			add(f.To, "        over: %s", f.Text)
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	const most = 80
	var b strings.Builder
	for i, l := range lines {
		if len(lines) > most && i == most/2 {
			fmt.Fprintf(&b, "  … %d lines more …\n", len(lines)-most)
		}
		if len(lines) <= most || i < most/2 || i >= len(lines)-most/2 {
			fmt.Fprintf(&b, "%9.3f s  %s\n", (l.at - h.start).Seconds(), l.text)
		}
	}
	return b.String()
}
