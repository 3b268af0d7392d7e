package leasehold

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// The Leases of a group have its label, and what they say in an annotation.
const (
	groupLabel       = "leasehold-go.github.io/group"
	tableAnnotation  = "leasehold-go.github.io/table"
	memberAnnotation = "leasehold-go.github.io/member"
	keysAnnotation   = "leasehold-go.github.io/keys"
)

// withGroupLabel returns labels with the group's.
func withGroupLabel(labels map[string]string, group string) map[string]string {
	all := maps.Clone(labels)
	if all == nil {
		all = map[string]string{}
	}
	all[groupLabel] = group
	return all
}

// A worker does the work of keys. Its methods are called without locks.
type worker interface {
	// start begins the work of a session. The worker calls group.returned when that has ended.
	start(s *keySession)
	// stop is called when the session's context has ended, however that came.
	stop(s *keySession)
}

// A group is one process's part in a group: a member, in one term after the other.
type group struct {
	campaign *campaign
	client   *groupClient
	worker   worker
	delays   groupDelays
	buckets  int      // 0 where keys have names
	numbers  []string // the buckets, as keys

	mu       sync.Mutex             // protects following; no other is taken with it held
	sets     keySets                // of keys that have names
	past     shards.Past            // for all terms
	sessions map[string]*keySession // by key: those of the newest term whose work has not returned
	earlier  map[string]*keySession // by key: those of earlier terms whose work has not returned
	stopping map[*keySession]bool   // those of both that were stopped
	present  *membership            // of the present term; nil between terms
	fatal    error                  // why the member ends
	ended    map[string]uint64      // sessions of keys that ended, by why
	started  uint64                 // sessions of keys that began
	warned   map[string]bool        // what was logged, and need not be again
	leaving  chan struct{}          // closed when the member leaves
	left     sync.Once              // closes leaving
	sawTable bool                   // there was a table of the group
}

// groupDelays are the pauses after failures in a row, by what failed. All are made when the group begins, on the
// goroutine of the program's that begins it, because a function of WithBackOff may panic.
type groupDelays struct{ table, keys, members, assign, publish *delays }

func newGroup(c *campaign, name string, buckets int) *group {
	newDelays := func() *delays { return newDelays(c.options.newBackOff, c.user) }
	g := &group{
		campaign: c,
		client:   &groupClient{c, name},
		delays:   groupDelays{newDelays(), newDelays(), newDelays(), newDelays(), newDelays()},
		buckets:  buckets,
		numbers:  numbersOf(buckets),
		sets:     keySets{byDigest: map[string][]string{}, pages: map[string][]string{}},
		sessions: map[string]*keySession{},
		earlier:  map[string]*keySession{},
		stopping: map[*keySession]bool{},
		ended:    map[string]uint64{},
		warned:   map[string]bool{},
		leaving:  make(chan struct{}),
	}
	c.lease.labels = withGroupLabel(c.lease.labels, name)
	c.lease.kept, c.lease.report = withGroupLabel(nil, name), g.annotations
	return g
}

// annotations are what the member writes with each renewal.
func (g *group) annotations() map[string]*string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.present == nil {
		return nil
	}
	return map[string]*string{memberAnnotation: new(g.present.reportLocked().Encode())}
}

// run is a member, until ctx ends or leave is called, and all work has returned. The error is why it ended.
func (g *group) run() error {
	c := g.campaign
	k := newCandidates(campaigns{c})
	for {
		s, err := k.await(c.ctx)
		if err != nil {
			return err
		}
		g.serve(s)
		g.mu.Lock()
		fatal := g.fatal
		g.mu.Unlock()
		switch {
		case fatal != nil:
			return fatal
		case c.ctx.Err() != nil:
			return context.Cause(c.ctx)
		case g.isLeaving():
			return nil
		}
		k.pause(c.ctx, s)
	}
}

// serve is a member for as long as s lasts.
func (g *group) serve(s *session) {
	defer s.finish()
	m := newMembership(g, s)
	defer func() {
		g.mu.Lock()
		g.present = nil
		g.mu.Unlock()
	}()
	m.run()
}

// leave ends the member once its work has returned.
func (g *group) leave() { g.left.Do(func() { close(g.leaving) }) }

func (g *group) isLeaving() bool {
	select {
	case <-g.leaving:
		return true
	default:
		return false
	}
}

// fail ends the member because of err.
func (g *group) fail(err error) {
	g.mu.Lock()
	if g.fatal == nil {
		g.fatal = err
	}
	g.mu.Unlock()
	g.leave()
}

// hasSeenTable reports whether this process has seen a table of the group, also one that it cannot read or go by.
func (g *group) hasSeenTable() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sawTable
}

// retry makes a request again and again, by delays, until it succeeds. The error is the cause of the end of ctx.
func (g *group) retry(ctx context.Context, delays *delays, request func() error) error {
	delays.reset()
	for {
		err := request()
		switch {
		case err == nil:
			return nil
		case ctx.Err() == nil:
			sleep(ctx, g.campaign.clock, delays.next(err, g.campaign.options.renewInterval))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// acceptsLocked reports whether the member can have key now. The caller holds mu.
func (g *group) acceptsLocked(key string) bool {
	if g.sessions[key] != nil || g.earlier[key] != nil || g.isLeaving() {
		return false
	}
	if g.buckets > 0 {
		return true
	}
	_, known := slices.BinarySearch(g.sets.known, key)
	return known
}

// returned says that the work of s has returned. It counts once: when it is said again, the key may have been given
// to another session.
func (g *group) returned(s *keySession, failed bool) {
	why := endOf(s, failed)
	if s.over.Swap(true) {
		return // it was told before
	}
	s.cancel(ErrReleased)
	g.mu.Lock()
	g.ended[why]++
	for _, sessions := range []map[string]*keySession{g.sessions, g.earlier} {
		if sessions[s.key] == s {
			delete(sessions, s.key)
		}
	}
	delete(g.stopping, s)
	m := g.present
	if m != nil && m.session == s.member {
		if g.campaign.ctx.Err() != nil {
			m.owner.Leave() // its key need not rest
		}
		m.owner.Returned(s.key, failed)
	}
	if m != nil && m.untold.IsZero() {
		m.untold = g.campaign.clock.now().mono
	}
	g.mu.Unlock()
	if m != nil {
		m.news.signal()
	}
}

// stop ends the session s because of cause, and tells the worker.
func (g *group) stop(s *keySession, cause error) {
	s.cancel(cause)
	g.mu.Lock()
	if s.stopped.IsZero() {
		s.stopped = g.campaign.clock.now().mono
		if !s.over.Load() {
			g.stopping[s] = true
		}
	}
	g.mu.Unlock()
	g.worker.stop(s)
}

// once reports whether what was not warned of before.
func (g *group) once(what string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	first := !g.warned[what]
	g.warned[what] = true
	return first
}
