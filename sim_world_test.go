package leasehold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A sim is a world made of a seed. All chance in it is a function of the seed, of who asks and of
// when, so that it does not matter in which order goroutines ask in one instant.
type sim struct {
	seed       uint64
	srv        *leasetest.Server
	start      time.Time
	candidates []*simCandidate
	electors   []*simElector
	links      []*link
	judge      *judge
	observer   *observer            // nil where nobody observes
	holders    atomic.Pointer[link] // of who holds the lease

	latency time.Duration // of half an exchange where nothing is wrong, at most
	calm    time.Duration // the faults begin to stop
	lasted  time.Duration // how old the world became, when it has ended
	storms  []storm
	deeds   []deed

	ctx     context.Context // ends with the world
	stop    context.CancelFunc
	running sync.WaitGroup

	mu         sync.Mutex
	faultsTill time.Duration // when what was done before calm has had its effect; protected by mu
}

// A storm is a time when requests of one link, or all, go wrong.
type storm struct {
	kind     stormKind
	from, to time.Duration
	link     int // or one of the following
	odds     float64
	reach    time.Duration
}

const (
	everyLink   = -1
	holdersLink = -2 // whoever holds the lease
)

// strikes tells whether the storm is over a link at a time.
func (st storm) strikes(l *link, at time.Duration) bool {
	if at < st.from || at >= st.to {
		return false
	}
	switch st.link {
	case everyLink:
		return true
	case holdersLink:
		return l.sim.holders.Load() == l
	}
	return l.sim.links[st.link] == l
}

type stormKind int

const (
	slow stormKind = iota
	lossy
	refusing
	down
	hanging
	stormKinds
)

func (k stormKind) String() string {
	return []string{"slow", "lossy", "refusing", "down", "hanging"}[k]
}

// A deed is something that happens to the world at a time: a hand on the Lease or on a network link.
type deed struct {
	at   time.Duration
	who  string
	what string
	do   func()
}

// dice are the chance of one question.
type dice struct{ *rand.Rand }

func roll(parts ...uint64) dice {
	h := uint64(0x9e3779b97f4a7c15)
	for _, p := range parts {
		h = (h ^ p) * 0xff51afd7ed558ccd
		h ^= h >> 32
	}
	return dice{rand.New(rand.NewPCG(h, h*0xc4ceb9fe1a85ec53))}
}

func (d dice) happens(p float64) bool { return d.Float64() < p }

// between is uniform, among the magnitudes between low and high.
func (d dice) among(low, high time.Duration) time.Duration {
	return time.Duration(float64(low) * math.Pow(float64(high)/float64(low), d.Float64()))
}

func (d dice) between(low, high time.Duration) time.Duration {
	return low + time.Duration(d.Int64N(int64(high-low)+1))
}

// newSim makes the world of seed; nothing happens in it yet.
func newSim(seed uint64) *sim {
	d := roll(seed, 1)
	s := &sim{seed: seed, latency: d.among(100*time.Microsecond, 30*time.Millisecond)}
	s.judge = newJudge(s)
	base := seconds(d, 10, 15, 15, 15, 20, 30, 40, 60)
	if d.happens(0.08) {
		base = seconds(d, 1, 2, 3, 5, 8) // a few, because they cost much
	}
	foreign := d.happens(0.15)
	if foreign {
		// client-go cuts times to whole seconds, so that it may take a lease up to a second before
		// its duration has passed since the last renewal: too early where D - R is shorter.
		base = max(base, 10*time.Second)
	}
	mixed, style := d.happens(0.25), d.IntN(10)
	count := 2 + min(d.IntN(6), d.IntN(6))
	for i := range count {
		c := &simCandidate{settings: settings{duration: base}, name: string(rune('a' + i))}
		if mixed && d.happens(0.5) {
			c.duration = seconds(d, 10, 15, 30, 60)
		}
		c.renewDeadline = c.duration / 10 * 8
		switch {
		case foreign: // as above
		case d.happens(0.15):
			c.renewDeadline = c.duration / 10 * 9
		case d.happens(0.25):
			c.renewDeadline = d.between(c.duration*4/10, c.duration*9/10)
		}
		c.renewInterval = min(c.duration/5, c.renewDeadline/2)
		switch {
		case d.happens(0.1):
			c.renewInterval = c.renewDeadline / 2
		case d.happens(0.2):
			c.renewInterval = d.between(max(c.renewDeadline/10, 100*time.Millisecond), c.renewDeadline/2)
		}
		if i > 0 { // the first one can always lead in the end
			switch {
			case d.happens(0.15):
				c.mode = UseExisting
			case d.happens(0.1):
				c.mode = CreateNew
			}
		}
		switch {
		case style < 5: // an identity for each campaign
		case style < 9, i > 1:
			c.identity = c.name
		default: // two by mistake
			c.identity = "twin"
		}
		c.link = s.newLink(c.name)
		c.sim = s
		s.candidates = append(s.candidates, c)
	}
	if foreign {
		for i := range 1 + d.IntN(2) {
			s.electors = append(s.electors, newSimElector(s, fmt.Sprint("client-go-", i), base, d))
		}
	}
	for _, c := range s.candidates {
		s.latency = min(s.latency, (c.renewDeadline-c.renewInterval)/40) // a tenth of a renewal's timeout
	}
	s.share(roll(seed, 13))
	s.setClocks(d)
	length := d.among(10*time.Minute, 30*time.Minute)
	if base < 5*time.Second {
		length = 10 * time.Minute
	}
	s.calm = length - 4*s.longest() - time.Minute
	s.plan(d)
	s.setForms()
	return s
}

// share has some candidates be one process, in some worlds.
func (s *sim) share(d dice) {
	if !d.happens(0.5) {
		return
	}
	many, processes := 1, 1+d.IntN(3)
	if d.happens(0.3) {
		many = 2 // so that watches of their own become one, and that one comes and goes
	}
	for i, c := range s.candidates {
		first := s.candidates[i%processes%len(s.candidates)]
		if first.process == nil {
			first.process = &simProcess{link: first.link}
		}
		c.process, c.many = first.process, many
		c.renewInterval = min(first.renewInterval, c.renewDeadline/2) // only with the same they share
	}
}

// newPeerSim makes a world of client-go's electors alone, with settings that it accepts.
func newPeerSim(seed uint64) *sim {
	d := roll(seed, 10)
	s := &sim{seed: seed, latency: d.among(100*time.Microsecond, 30*time.Millisecond), calm: 20 * time.Minute}
	s.judge = newJudge(s)
	for i := range 2 + d.IntN(3) {
		e := newSimElector(s, fmt.Sprint("client-go-", i), 15*time.Second, d)
		if seed%2 == 0 {
			e.config.RenewDeadline, e.config.RetryPeriod = 14*time.Second, 5*time.Second
		}
		s.electors = append(s.electors, e)
	}
	s.plan(d)
	return s
}

func seconds(d dice, of ...int) time.Duration {
	return time.Duration(of[d.IntN(len(of))]) * time.Second
}

// longest is the longest duration that anybody records.
func (s *sim) longest() (longest time.Duration) {
	for _, c := range s.candidates {
		longest = max(longest, c.duration)
	}
	for _, e := range s.electors {
		longest = max(longest, e.config.LeaseDuration)
	}
	return longest
}

// setClocks gives each candidate a clock whose rate differs from every other's by less than D/R.
// client-go's electors go by the world's own.
func (s *sim) setClocks(d dice) {
	spread := math.Inf(1)
	for _, c := range s.candidates {
		spread = min(spread, float64(c.duration)/float64(c.renewDeadline))
	}
	for _, e := range s.electors {
		spread = min(spread, float64(e.config.LeaseDuration)/float64(e.config.RenewDeadline))
	}
	spread = math.Pow(spread, 0.97)
	for _, c := range s.candidates {
		c.rate = 1
		switch {
		case d.happens(0.3):
		case d.happens(0.5):
			c.rate = math.Pow(spread, d.Float64()-0.5)
		case d.happens(0.5):
			c.rate = math.Sqrt(spread)
		default:
			c.rate = 1 / math.Sqrt(spread)
		}
		if len(s.electors) > 0 {
			c.rate = max(c.rate, 1.01*float64(c.renewDeadline)/float64(c.duration-time.Second))
		}
	}
}

// plan decides what will happen.
func (s *sim) plan(d dice) {
	longest := s.longest()
	somewhen := func() time.Duration { return d.between(0, s.calm) }
	rounds := 1 + d.IntN(1+int(s.calm/longest))
	for range rounds {
		st := storm{kind: stormKind(d.IntN(int(stormKinds))), from: somewhen(), link: everyLink, odds: 0.2 + 0.8*d.Float64()}
		st.to = min(s.calm, st.from+d.among(time.Second, 3*longest))
		st.reach = d.among(50*time.Millisecond, longest)
		switch {
		case d.happens(0.4):
			st.link = d.IntN(len(s.links))
		case d.happens(0.5):
			st.link = holdersLink
		}
		s.storms = append(s.storms, st)
	}
	slices.SortFunc(s.storms, func(a, b storm) int { return cmp.Compare(a.from, b.from) })
	for range rounds {
		s.planNetwork(d, somewhen(), longest)
	}
	for range d.IntN(6) * min(1, len(s.candidates)) {
		c := s.candidates[d.IntN(len(s.candidates))]
		nap := d.among(time.Second, 2*c.duration)
		s.deed(somewhen(), c.name, fmt.Sprintf("its machine sleeps %v", nap), func() { c.nap(nap) })
	}
	for _, c := range s.candidates {
		for range d.IntN(4) {
			from := somewhen()
			if d.happens(0.2) {
				from = 0 // comes later than others
			}
			c.downs = append(c.downs, interval{from, min(s.calm, from+d.among(time.Second, 4*longest))})
		}
	}
	for _, e := range s.electors {
		for range d.IntN(4) {
			from := somewhen()
			e.downs = append(e.downs, interval{from, min(s.calm, from+d.among(time.Second, 2*longest))})
		}
	}
	if d.happens(0.6) && len(s.candidates) > 0 {
		for range d.IntN(6) {
			s.planOperator(d, somewhen(), longest)
		}
	}
	slices.SortStableFunc(s.deeds, func(a, b deed) int { return cmp.Compare(a.at, b.at) })
}

func (s *sim) deed(at time.Duration, who, what string, do func()) {
	s.deeds = append(s.deeds, deed{at, who, what, do})
}

// planNetwork plans one fault of a link or its watches.
func (s *sim) planNetwork(d dice, at, longest time.Duration) {
	l := s.links[d.IntN(len(s.links))]
	until := min(s.calm, at+d.among(time.Second, 3*longest))
	switch d.IntN(12) {
	case 0, 1:
		s.deed(at, l.name, "is cut off", func() { l.cut(true) })
		s.deed(until, l.name, "is reachable again", func() { l.cut(false) })
	case 8, 9, 10, 11:
		var holder *link
		s.deed(at, "holder", "is cut off", func() {
			if holder = s.holders.Load(); holder != nil {
				holder.cut(true)
			}
		})
		s.deed(until, "holder", "that was is reachable again", func() {
			if holder != nil {
				holder.cut(false)
			}
		})
	case 2:
		backlog := d.happens(0.5)
		s.deed(at, l.name, "watches fall silent", func() { l.client.SilenceWatches() })
		s.deed(until, l.name, fmt.Sprintf("watches speak again, backlog %v", backlog), func() { l.client.ResumeWatches(backlog) })
	case 3:
		s.deed(at, l.name, "watches fall silent for good", func() { l.client.SilenceWatches() })
	case 4:
		err := []error{nil, leasetest.InternalError(), apierrors.NewResourceExpired("too old")}[d.IntN(3)]
		s.deed(at, l.name, fmt.Sprintf("watches end: %v", err), func() { l.client.CloseWatches(err) })
	case 5:
		n := 1 + d.IntN(20)
		s.deed(at, l.name, fmt.Sprintf("watches replay %d changes", n), func() { l.client.ReplayWatches(n) })
	case 6:
		event := []watch.Event{leasetest.Undecodable(), {Type: watch.Bookmark, Object: &coordinationv1.Lease{}}, {Type: "ODD"}}[d.IntN(3)]
		s.deed(at, l.name, fmt.Sprintf("watches bring an odd event %q", event.Type), func() { l.client.SendEvent(event) })
	case 7:
		s.deed(at, "server", "is restarted: watches end, their past is gone", func() {
			s.srv.Compact()
			s.srv.CloseWatches(nil)
		})
	}
}

// planOperator plans what a person may do to the Lease.
func (s *sim) planOperator(d dice, at, longest time.Duration) {
	fresh := func(holder string) *coordinationv1.Lease {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
		if holder != "" {
			now := metav1.NewMicroTime(time.Now().Add(d.between(-time.Hour, time.Hour)))
			l.Spec = coordinationv1.LeaseSpec{
				HolderIdentity: &holder, AcquireTime: &now, RenewTime: &now,
				// As long as the ousted holder's: whoever takes a lease by force has to wait for the
				// one who holds it, and others can only go by what is written.
				LeaseDurationSeconds: new(int32(longest / time.Second)),
			}
		}
		return l
	}
	operator := func(what string, do func()) { s.deed(at, "operator", what, do) }
	edit := func(f func(*coordinationv1.Lease)) { s.srv.Edit(ns, name, f) }
	switch d.IntN(8) {
	case 0, 1:
		operator("labels the Lease", func() {
			edit(func(l *coordinationv1.Lease) { l.Labels = map[string]string{"at": fmt.Sprint(at.Seconds())} })
		})
	case 2, 3:
		operator("gives the lease to a thief", func() {
			edit(func(l *coordinationv1.Lease) { l.Spec = fresh("thief").Spec })
		})
	case 4:
		operator("empties the lease", func() {
			edit(func(l *coordinationv1.Lease) {
				l.Spec = coordinationv1.LeaseSpec{LeaseTransitions: l.Spec.LeaseTransitions}
			})
		})
	case 5:
		operator("deletes the Lease", func() { s.srv.Delete(ns, name) })
	case 6:
		operator("deletes the Lease and makes a free one", func() {
			s.srv.Delete(ns, name)
			s.srv.Put(fresh(""))
		})
	case 7:
		operator("deletes the Lease and makes one held by a thief", func() {
			s.srv.Delete(ns, name)
			s.srv.Put(fresh("thief"))
		})
	}
}

// now is how old the world is.
func (s *sim) now() time.Duration { return time.Since(s.start) }

// sleepUntil returns false if the world ends before.
func (s *sim) sleepUntil(at time.Duration) bool {
	timer := time.NewTimer(at - s.now())
	defer timer.Stop()
	select {
	case <-timer.C:
		return s.ctx.Err() == nil
	case <-s.ctx.Done():
		return false
	}
}

// run lets the world happen, in a bubble.
func (s *sim) run() {
	s.start = time.Now()
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.srv = leasetest.NewServer()
	s.srv.OnCommit(s.judge.committed)
	for _, l := range s.links {
		l.connect()
	}
	for _, c := range s.candidates {
		s.running.Go(c.live)
		time.Sleep(time.Microsecond) // so that they have an order
	}
	for _, e := range s.electors {
		s.running.Go(e.live)
	}
	if s.observer != nil {
		s.running.Go(s.observer.live)
	}
	for _, d := range s.deeds {
		if !s.sleepUntil(d.at) {
			break
		}
		s.judge.note(d.who, "%s", d.what)
		d.do()
		s.judge.look()
	}
	if s.sleepUntil(s.calm) && len(s.candidates) > 0 {
		s.calmDown()
	}
	s.end()
}

// calmDown ends the faults and judges what follows (G8).
func (s *sim) calmDown() {
	for _, l := range s.links {
		l.client.Partition(false)
		l.cuts.Store(0)
		l.client.ResumeWatches(false) // so that what is silent hears of its end
		l.client.CloseWatches(nil)    // one that was silent, or has lost events, is a fault too
	}
	s.judge.note("all", "the faults stop")
	for !s.settled() {
		if s.now() > s.calm+5*time.Minute {
			s.judge.fault("requests or bodies from before the faults stopped are still under way")
		}
		if !s.sleepUntil(s.now() + 100*time.Millisecond) {
			return
		}
	}
	settled := s.now()
	s.judge.note("all", "the faults have stopped")
	slowest := 1.0
	for _, c := range s.candidates {
		slowest = min(slowest, c.rate)
	}
	limit := time.Duration(float64(s.longest()+time.Second) / slowest)
	if !s.wantLeader(settled + limit) {
		return
	}
	s.judge.note("all", "%s leads", s.judge.leader())
	if s.sleepUntil(settled + 2*limit) {
		s.wantLeader(settled + 3*limit) // still, or again
	}
}

// wantLeader returns when somebody leads, and finds a fault if that is not before the deadline.
func (s *sim) wantLeader(deadline time.Duration) bool {
	began := s.now()
	for s.judge.leader() == "" {
		if s.now() > deadline {
			s.judge.fault("nobody leads %v after the last fault", s.now()-began)
		}
		if !s.sleepUntil(s.now() + 20*time.Millisecond) {
			return false
		}
	}
	return true
}

// settled tells whether the last fault is over: what was sent, delayed or asked for before has come to
// its end, hung requests have been given up, and no body holds a lease whose context has ended.
func (s *sim) settled() bool {
	if !s.faultsOver(s.now() + 1) {
		return false
	}
	for _, l := range s.links {
		if l.sentBeforeCalm.Load() > 0 {
			return false
		}
	}
	return s.judge.windingDown() == ""
}

// end ends all campaigns in fair weather; nothing of them may be left.
func (s *sim) end() {
	s.judge.note("all", "the end")
	s.lasted = s.now()
	fair := s.ctx.Err() == nil
	if fair {
		s.judge.observedAll(s.observer)
	}
	for _, l := range s.links {
		l.client.Partition(false) // after a fault found, the weather may be foul
	}
	s.stop()
	ended := make(chan struct{})
	go func() {
		s.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Hour):
		s.judge.fault("a loop goes on an hour after its context ended")
		return
	}
	synctest.Wait()
	for _, l := range s.links {
		if n := l.client.WatchCount(); n > 0 {
			s.judge.fault("%s left %d watches", l.name, n)
		}
	}
	if fair {
		s.judge.wantFree()
	}
	time.Sleep(time.Hour) // a request or a timer left behind would show
}

// fate decides what becomes of a request.
func (s *sim) fate(l *link, r leasetest.Request) leasetest.Fault {
	at := s.now()
	d := roll(s.seed, 2, l.id, uint64(at), uint64(r.Verb[0])<<8|uint64(len(r.Verb)))
	f := leasetest.Fault{Before: d.between(s.latency/4, s.latency), After: d.between(s.latency/4, s.latency)}
	if at >= s.calm {
		return f
	}
	write := r.Verb != "get" && r.Verb != "watch"
	pause := time.Duration(0)
	spoil := func(kind stormKind, odds float64, reach time.Duration) {
		switch {
		case !d.happens(odds):
		case kind == slow:
			f.Before += d.among(time.Millisecond, reach)
			f.After += d.among(time.Millisecond, reach)
			f.Late = write && d.happens(0.5)
		case kind == lossy:
			f.Drop = leasetest.Drop(1 + d.IntN(2))
			f.Err = []error{nil, leasetest.ConnectionReset(), leasetest.EOF(), leasetest.NetTimeout()}[d.IntN(4)]
		case kind == down:
			f.Err = leasetest.ConnectionRefused()
		case kind == hanging:
			f.Drop, f.Err = leasetest.Drop(1+d.IntN(2)), nil
		case d.happens(0.4): // the server fails; who knows whether before or after the write
			f.Err = []error{leasetest.InternalError(), leasetest.ServerTimeout(), leasetest.ServiceUnavailable()}[d.IntN(3)]
			if d.happens(0.5) {
				f.Drop = leasetest.TheReply
			}
		case d.happens(0.5):
			seconds := time.Duration(1+d.IntN(5)) * time.Second
			f.Err, f.Drop, pause = leasetest.TooManyRequests(seconds), 0, seconds
		// Such a refusal is true, also where a fault of another kind struck the request before.
		case write && d.happens(0.5):
			f.Err, f.Drop = apierrors.NewConflict(coordinationv1.Resource("leases"), name, errors.New("so the server says")), 0
		case d.happens(0.5):
			f.Err, f.Drop = leasetest.Unauthorized(), 0
		default:
			f.Err, f.Drop = leasetest.Forbidden(r), 0
		}
	}
	for _, st := range s.storms {
		if st.from > at {
			break
		}
		if st.strikes(l, at) {
			spoil(st.kind, st.odds, st.reach)
		}
	}
	spoil(stormKind(d.IntN(int(stormKinds))), 0.005, 2*time.Second) // out of the blue
	if (r.Verb == "apply" || r.Verb == "create") && l.id < uint64(len(s.candidates)) && d.happens(0.02) {
		c := s.candidates[l.id]
		nap := d.among(c.renewDeadline/10, 2*c.duration)
		time.AfterFunc(f.Before+f.After/2, func() { c.nap(nap) }) // while the reply is under way
	}
	l.fault(at, r, f)
	till := at
	if f.Late {
		till += f.Before
	}
	if pause > 0 { // the server asked to be left alone for so long
		till += f.Before + f.After + pause
	}
	s.faultUntil(till)
	return f
}

// delay decides when a watch event arrives.
func (s *sim) delay(l *link, version string) time.Duration {
	at := s.now()
	h := uint64(0)
	for _, b := range []byte(version) {
		h = h*31 + uint64(b)
	}
	d := roll(s.seed, 3, l.id, uint64(at), h)
	late := d.between(s.latency/4, s.latency)
	if at >= s.calm {
		return late
	}
	for _, st := range s.storms {
		if st.from > at {
			break
		}
		if st.kind == slow && st.strikes(l, at) {
			late += d.among(time.Millisecond, st.reach)
		}
	}
	s.faultUntil(at + late)
	return late
}

// faultsOver tells whether nothing that was done before is still to have an effect at that time.
func (s *sim) faultsOver(at time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faultsTill < at
}

func (s *sim) faultUntil(till time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faultsTill = max(s.faultsTill, till)
}

// A simClock runs at a rate of its own. Its boot time is ahead by how long the machine slept; while
// it sleeps nothing else happens, so that the process finds the time gone without any timer firing.
type simClock struct {
	rateClock
	slept *atomic.Int64
}

func (c simClock) now() instant {
	now := c.rateClock.now()
	now.boot += time.Duration(c.slept.Load())
	return now
}
