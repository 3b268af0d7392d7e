package leasehold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"

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
	// begin begins the work of a session. The worker calls group.returned when that has ended.
	begin(s *keySession)
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
	keys     []string               // those with names that the member knows, sorted
	digest   string                 // of keys, once they are published
	sets     map[string][]string    // sets of keys by digest
	past     shards.Past            // for all terms
	sessions map[string]*keySession // by key: those of the newest term whose work has not returned
	earlier  map[string]*keySession // by key: those of earlier terms whose work has not returned
	stopping map[*keySession]bool   // those of both that were stopped
	present  *membership            // of the present term; nil between terms
	fatal    error                  // why the member ends
	ended    map[string]uint64      // sessions of keys that ended, by why
	begun    uint64                 // sessions of keys that began
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
		sets:     map[string][]string{},
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

// numbersOf returns the numbers of buckets, as keys.
func numbersOf(buckets int) []string {
	numbers := make([]string, buckets)
	for bucket := range numbers {
		numbers[bucket] = strconv.Itoa(bucket)
	}
	return numbers
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
	g.mu.Lock()
	g.present = m
	g.mu.Unlock()
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

// know says which keys the member knows, sorted, and publishes them for the others.
func (g *group) know(ctx context.Context, keys []string) error {
	digest := shards.Digest(keys)
	g.mu.Lock()
	keys = g.addSetLocked(digest, keys)
	g.keys = keys
	var gone []*keySession
	for _, sessions := range []map[string]*keySession{g.sessions, g.earlier} {
		for key, s := range sessions {
			if _, known := slices.BinarySearch(keys, key); !known {
				gone = append(gone, s)
			}
		}
	}
	g.mu.Unlock()
	for _, s := range gone {
		g.stop(s, ErrMoved)
	}
	err := g.retry(ctx, g.delays.publish, func() error { return g.publish(ctx, digest, keys) })
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.digest = digest
	m := g.present
	if m != nil {
		m.owner.Know(digest)
	}
	g.mu.Unlock()
	if m != nil {
		m.tell()
	}
	return nil
}

// retry makes a request again and again, by delays, until it succeeds. The error is the cause of the end of ctx.
func (g *group) retry(ctx context.Context, delays *delays, request func() error) error {
	delays.reset()
	for {
		err := request()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		sleep(ctx, g.campaign.clock, delays.next(err, g.campaign.options.renewInterval))
	}
}

// republish publishes the keys again.
func (g *group) republish(ctx context.Context) {
	g.mu.Lock()
	digest, keys := g.digest, g.keys
	g.mu.Unlock()
	if digest != "" {
		g.publish(ctx, digest, keys) // logs its own failure
	}
}

// publish writes a set of keys for the others to read. It is there already if another member knows the same.
func (g *group) publish(ctx context.Context, digest string, keys []string) error {
	for i, page := range shards.Pages(keys) {
		_, err := g.client.create(ctx, "create keys", &coordinationv1.Lease{ObjectMeta: objectMeta(
			g.pageName(digest, i), keysAnnotation, page,
		)})
		if err != nil && conflicts(err) {
			err = g.mend(ctx, g.pageName(digest, i), page)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mend makes a page of keys that exists what it is to be, if somebody changed it.
func (g *group) mend(ctx context.Context, name, page string) error {
	lease, err := g.client.get(ctx, "get keys", name)
	if err != nil || lease == nil || lease.Annotations[keysAnnotation] == page {
		return err
	}
	r, err := readRecord(lease)
	if err != nil {
		return err
	}
	_, err = g.client.patch(ctx, "write keys", name, r, map[string]*string{keysAnnotation: &page}, nil)
	return err
}

func (g *group) pageName(digest string, page int) string {
	return fmt.Sprintf("%s-k-%s-%d", g.client.group, digest, page)
}

// names returns the keys with a digest.
func (g *group) names(ctx context.Context, digest string) ([]string, error) {
	g.mu.Lock()
	keys, ok := g.sets[digest]
	g.mu.Unlock()
	if ok || digest == shards.Digest(nil) {
		return keys, nil
	}
	if !shards.IsDigest(digest) {
		return nil, errKeysMissing
	}
	var failed error // of a request
	keys, err := shards.ReadPages(digest, func(page int) (string, error) {
		var lease *coordinationv1.Lease
		if lease, failed = g.client.get(ctx, "get keys", g.pageName(digest, page)); failed != nil || lease == nil {
			return "", errKeysMissing
		}
		return lease.Annotations[keysAnnotation], nil
	})
	if failed != nil {
		return nil, failed
	}
	if err != nil {
		g.campaign.log.debug("a set of keys cannot be read", "digest", digest, "error", err)
		return nil, errKeysMissing
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.addSetLocked(digest, keys), nil
}

// addSetLocked remembers a set of keys. It returns the one slice that is remembered for each digest. The caller holds
// mu.
func (g *group) addSetLocked(digest string, keys []string) []string {
	if known, ok := g.sets[digest]; ok {
		return known
	}
	g.sets[digest] = keys
	return keys
}

var errKeysMissing = errors.New("the Leases with the keys do not exist, or cannot be read")

// maxSets is how many sets of keys a member remembers.
const maxSets = 32

// forgetSets forgets the sets of keys that used does not name, if there are many.
func (g *group) forgetSets(used map[string]bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sets) <= maxSets {
		return
	}
	for digest := range g.sets {
		if !used[digest] && digest != shards.Digest(g.keys) {
			delete(g.sets, digest)
		}
	}
}

// accepts reports whether the member can have key now. The caller holds mu.
func (g *group) acceptsLocked(key string) bool {
	if g.sessions[key] != nil || g.earlier[key] != nil || g.isLeaving() {
		return false
	}
	if g.buckets > 0 {
		return true
	}
	_, known := slices.BinarySearch(g.keys, key)
	return known
}

// returned says that the work of s has returned. It counts once: when it is said again, the key may have been given
// anew.
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

// A membership is a member in one term: the session of its own Lease, what it owns, and what it sees of the group. The
// owner's side runs on the goroutine of the campaign, the assigner's on one of its own.
type membership struct {
	group    *group
	session  *session
	assigner *assigner
	news     wakeup // the table has changed, or work has returned
	unread   wakeup // others seem not to know the member's keys
	workers  errgroup.Group

	// Protected by the group's mu:
	owner   *shards.Owner
	table   tableView
	applied []string           // the names of the table that the owner went by last
	version uint64             // of that table
	reread  context.CancelFunc // reads the table afresh, and watches it anew
	ending  time.Time          // since when the work of a table that was replaced is to end; zero if none is
	untold  time.Time          // since when work has returned that the others were not told of; zero if none has
}

// A tableView is the table as it was last seen.
type tableView struct {
	known   bool
	exists  bool
	foreign bool // it is not the table of a group, but somebody else's Lease
	record  record
	text    string
	table   *shards.Table // nil if it cannot be read
	names   []string
	err     error // why it cannot be read
}

func newMembership(g *group, s *session) *membership {
	m := &membership{group: g, session: s, news: newWakeup(), unread: newWakeup()}
	m.assigner = newAssigner(m)
	g.mu.Lock()
	defer g.mu.Unlock()
	weight := g.campaign.options.group.weight
	if g.isLeaving() {
		weight = 0
	}
	maps.Copy(g.earlier, g.sessions)
	clear(g.sessions)
	m.owner = shards.NewOwner(m.term(), weight, g.digest, g.buckets, &g.past, g.acceptsLocked)
	return m
}

// term returns the term as tables name it.
func (m *membership) term() shards.Term {
	t := m.session.term
	return shards.Term{Lease: m.group.campaign.lease.name, UID: string(t.uid), Acquired: t.acquired.UnixMicro()}
}

// row returns what tables say of the member.
func (m *membership) row() shards.Row {
	c := m.group.campaign
	return shards.Row{
		Term: m.term(), Seen: m.session.token, Identity: c.lease.identity,
		Weight: c.options.group.weight, Seconds: int(c.lease.seconds()),
	}
}

// tell lets the others know soon what has changed for the member.
func (m *membership) tell() {
	m.assigner.look()
	m.session.renewSoon()
}

// tellReturned lets the others know of work that has returned: once all that is to end has, or what has returned within
// the time for which such news is gathered. It returns after which time it is to be called again; 0 if there is none.
func (m *membership) tellReturned() time.Duration {
	c := m.group.campaign
	m.group.mu.Lock()
	wait := time.Duration(0)
	if m.owner.Stopping() {
		wait = m.untold.Add(gathering(c.options)).Sub(c.clock.now().mono)
	}
	switch {
	case m.untold.IsZero():
		m.group.mu.Unlock()
		return 0
	case wait > 0:
		m.group.mu.Unlock()
		return wait
	}
	m.untold = time.Time{}
	m.owner.Told()
	m.group.mu.Unlock()
	m.tell()
	return 0
}

// reportLocked returns what the member reports. The caller holds the group's mu.
func (m *membership) reportLocked() shards.Report {
	var refused []int
	for key := range m.group.earlier {
		if i, ok := m.indexLocked(key); ok {
			refused = append(refused, i)
		}
	}
	slices.Sort(refused)
	r := m.owner.Report(refused)
	r.Version = m.table.record.version
	return r
}

// indexLocked returns the index of key in the table that the owner went by last.
func (m *membership) indexLocked(key string) (int, bool) {
	if m.group.buckets > 0 {
		i, err := strconv.Atoi(key)
		return i, err == nil
	}
	return slices.BinarySearch(m.applied, key)
}

// run is the member's side of the term. It returns when the term is over, or when the member leaves and all work of the
// term has returned.
func (m *membership) run() {
	c := m.group.campaign
	ctx, cancel := context.WithCancel(context.WithoutCancel(m.session.ctx))
	defer m.workers.Wait()
	defer cancel()
	m.workers.Go(func() error { m.followTable(ctx); return nil })
	m.workers.Go(func() error { m.assigner.followMembers(ctx); return nil })
	m.workers.Go(func() error { m.assigner.run(ctx); return nil })
	if m.group.buckets == 0 {
		m.workers.Go(func() error { m.keepPublished(ctx); return nil })
	}
	done, leaving := c.ctx.Done(), m.group.leaving
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if m.session.loss() != nil {
			m.stopAll()
			return
		}
		again := sooner(m.apply(), m.group.reportOverdue())
		if m.group.isLeaving() && m.isIdle() {
			return
		}
		if again = sooner(again, m.tellReturned()); again > 0 {
			timer.Reset(c.clock.wait(again))
		}
		select {
		case <-m.news:
		case <-timer.C:
		case <-m.session.lost:
		case <-done:
			done = nil
			m.group.leave()
		case <-leaving:
			leaving = nil
			m.group.mu.Lock()
			m.owner.Leave()
			m.group.mu.Unlock()
			m.session.cancel(orReleased(context.Cause(c.ctx)))
			m.stopAll()
			m.tell()
		}
	}
}

// keepPublished publishes the keys again, once in each term, because others delete what no member reports for long, and
// an interval after a table that is as if nobody could read them: it lacks some, or leaves the member none.
func (m *membership) keepPublished(ctx context.Context) {
	m.group.republish(ctx)
	for {
		select {
		case <-m.unread:
		case <-ctx.Done():
			return
		}
		sleep(ctx, m.group.campaign.clock, m.group.campaign.options.renewInterval)
		m.group.mu.Lock()
		unread := !m.owner.Keeps() || m.lacksLocked()
		m.group.mu.Unlock()
		if unread {
			m.group.republish(ctx)
		}
	}
}

// lacksLocked reports whether the table lacks keys that the member knows. The caller holds the group's mu.
func (m *membership) lacksLocked() bool {
	g, t := m.group, m.table.table
	if t == nil || !t.Open || t.Buckets > 0 || t.Keys == g.digest || g.digest == "" || g.isLeaving() {
		return false
	}
	return slices.ContainsFunc(g.keys, func(key string) bool {
		_, there := slices.BinarySearch(m.table.names, key)
		return !there
	})
}

// sooner returns the shorter of two waits; 0 is none.
func sooner(a, b time.Duration) time.Duration { return cmp.Or(min(a, b), max(a, b)) }

// followTable follows the table until ctx ends.
func (m *membership) followTable(ctx context.Context) {
	for ctx.Err() == nil {
		following, cancel := context.WithCancel(ctx)
		m.group.mu.Lock()
		m.reread = cancel
		m.group.mu.Unlock()
		m.group.client.follow(
			following, "get table", m.group.client.group, m.group.delays.table, &tableAudience{m, following})
		cancel()
	}
}

// readAfresh reads everything afresh, and watches anew: what was heard was not all.
func (m *membership) readAfresh() {
	m.group.mu.Lock()
	reread := m.reread
	m.group.mu.Unlock()
	if reread != nil {
		reread()
	}
	m.assigner.mu.Lock()
	defer m.assigner.mu.Unlock()
	if m.assigner.reselect != nil {
		m.assigner.reselect()
	}
}

// orReleased returns why a member leaves: err or, if that is nil, that it wanted to.
func orReleased(err error) error {
	if err == nil {
		return ErrReleased
	}
	return err
}

// stopAll tells the worker that all sessions of the term have ended.
func (m *membership) stopAll() {
	cause := m.session.loss()
	if cause == nil {
		cause = orReleased(context.Cause(m.session.ctx))
	}
	for _, s := range m.all() {
		m.group.stop(s, cause) // unless its context ended with the term's
	}
}

// apply goes by the newest table. It returns after which time it is to be called again; 0 if only news matters.
func (m *membership) apply() time.Duration {
	g := m.group
	if m.session.trustLeft() < g.campaign.options.renewDeadline/2 {
		m.session.renewSoon()
		return g.campaign.options.renewInterval / 10 // a session begins with at least so much trust
	}
	g.mu.Lock()
	t := m.table
	if t.foreign && !g.sawTable {
		g.mu.Unlock()
		g.fail(fmt.Errorf("leasehold: lease %s/%s: %w", g.campaign.lease.namespace, g.client.group, errForeignTable))
		return 0
	}
	if t.table == nil || m.version == t.record.version && !m.owner.Ending() {
		g.mu.Unlock()
		return 0
	}
	var change shards.Change
	others := t.table.Buckets != g.buckets // the table shares out other keys
	if others {
		change = m.owner.Abandon()
	} else {
		g.sawTable = true
		change = m.owner.Apply(t.table, t.names)
	}
	wait := time.Duration(0)
	if m.owner.Ending() {
		if wait = m.untilGivenUpLocked(); wait <= 0 {
			g.mu.Unlock()
			m.session.lose(errTableReplaced)
			return 0
		}
	} else if m.ending = (time.Time{}); !others {
		m.version, m.applied = t.record.version, t.names
	}
	var begin, stop []*keySession
	for _, key := range change.Start {
		s := newKeySession(m, key, t.record.version)
		g.sessions[key] = s
		g.begun++
		begin = append(begin, s)
	}
	for _, key := range change.Stop {
		if s := g.sessions[key]; s != nil {
			stop = append(stop, s)
		}
	}
	if len(change.Stop) > 0 && !m.owner.Keeps() || m.lacksLocked() {
		m.unread.signal()
	}
	g.mu.Unlock()
	if change.End {
		m.endAll()
	}
	for _, s := range stop {
		g.stop(s, ErrMoved)
	}
	for _, s := range begin {
		g.worker.begin(s)
	}
	if change.Tell {
		m.tell()
	}
	return wait
}

// endAll ends all sessions because their table is gone.
func (m *membership) endAll() {
	g := m.group
	ended := 0
	for _, s := range m.all() {
		if s.ctx.Context.Err() == nil {
			ended++
		}
		g.stop(s, errTableReplaced)
	}
	if ended > 0 {
		g.campaign.log.warn("the group's table was replaced; all work ends and is given out anew", "group",
			g.client.group)
	}
}

// untilGivenUpLocked returns how long to wait yet for work that is to end because the table was replaced. A member that
// waits longer would keep the whole group from going on: it begins another term. The caller holds the group's mu.
func (m *membership) untilGivenUpLocked() time.Duration {
	c := m.group.campaign
	now := c.clock.now().mono
	if m.ending.IsZero() {
		m.ending = now
	}
	return m.ending.Add(c.options.duration).Sub(now)
}

var errTableReplaced = lostBecause(edited, "the group's table was replaced")

// all returns the sessions of the term whose work has not returned.
func (m *membership) all() []*keySession {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return slices.Collect(maps.Values(m.group.sessions))
}

// isIdle reports whether all work of the term has returned.
func (m *membership) isIdle() bool {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return len(m.group.sessions) == 0
}

// tableOf returns the table as lease has it, before it is read. A nil lease says that there is none.
func (g *group) tableOf(lease *coordinationv1.Lease) (tableView, error) {
	if lease == nil {
		return tableView{known: true}, nil
	}
	r, err := readRecord(lease)
	if err != nil {
		return tableView{}, err
	}
	text := lease.Annotations[tableAnnotation]
	foreign := lease.Labels[groupLabel] != g.client.group && text == ""
	return tableView{known: true, exists: true, foreign: foreign, record: r, text: text}, nil
}

// readTable reads the text of v, and the names of its keys. The error is of a request; without its answer the table
// says nothing.
func (g *group) readTable(ctx context.Context, v *tableView) (err error) {
	if !v.exists || v.foreign {
		return nil
	}
	v.table, v.err = shards.DecodeTable(v.text)
	switch {
	case v.err != nil:
	case v.table.NewestSeen() > v.record.version:
		v.err = errors.New("the table names versions that the API server has not reached: it is of another")
	case v.table.Buckets == len(g.numbers) && g.buckets > 0:
		v.names = g.numbers
	case v.table.Buckets > 0:
		v.names = numbersOf(v.table.Buckets)
	default:
		v.names, err = g.names(ctx, v.table.Keys)
		if err == errKeysMissing || err == nil && len(v.names) != len(v.table.Entries) {
			v.err, err = errKeysMissing, nil
		}
	}
	if v.err != nil {
		v.table, v.names = nil, nil
	}
	return err
}

// setTable records the table as lease has it, unless what is known is newer.
func (m *membership) setTable(ctx context.Context, lease *coordinationv1.Lease) error {
	v, err := m.group.tableOf(lease)
	if err != nil || !m.newer(v) {
		return err
	}
	if err := m.group.readTable(ctx, &v); err != nil {
		return err
	}
	m.group.mu.Lock()
	if !m.newerLocked(v) {
		m.group.mu.Unlock()
		return nil
	}
	if !v.exists {
		v.record.version = m.table.record.version // what is older than what was seen stays old
	}
	m.table = v
	m.group.mu.Unlock()
	m.news.signal()
	m.assigner.tableChanged()
	return nil
}

func (m *membership) newer(v tableView) bool {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return m.newerLocked(v)
}

// newerLocked reports whether v says more than what is known of the table. A read that finds none may be older than the
// table that was seen; then a watch brings that again. The caller holds the group's mu.
func (m *membership) newerLocked(v tableView) bool {
	switch {
	case !m.table.known:
		return true
	case !v.exists:
		return m.table.exists
	case !m.table.exists:
		return v.record.version >= m.table.record.version
	}
	return v.record.version > m.table.record.version
}

// A tableAudience records what the table is.
type tableAudience struct {
	*membership
	ctx context.Context
}

func (a *tableAudience) replace(leases []*coordinationv1.Lease, _ uint64) {
	var lease *coordinationv1.Lease
	if len(leases) > 0 {
		lease = leases[0]
	}
	a.set(lease)
}

func (a *tableAudience) update(lease *coordinationv1.Lease, deleted bool) {
	if deleted {
		a.removed(lease)
		return
	}
	a.set(lease)
}

// set records the table. Keys that cannot be read now are tried again, because without them the table says nothing.
func (a *tableAudience) set(lease *coordinationv1.Lease) {
	a.group.retry(a.ctx, a.group.delays.keys, func() error { return a.setTable(a.ctx, lease) })
}

// removed records that the table was deleted when it was as last.
func (a *tableAudience) removed(last *coordinationv1.Lease) {
	r, err := readRecord(last)
	if err != nil {
		return
	}
	a.group.mu.Lock()
	if r.version >= a.table.record.version {
		a.table = tableView{known: true, record: record{version: r.version}}
	}
	a.group.mu.Unlock()
	a.assigner.tableChanged()
}
