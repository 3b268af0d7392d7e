package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/leasetest"
)

// newWorld makes the world of seed; nothing happens in it yet.
func newWorld(hooks Hooks, seed uint64) *World {
	r := newRNG(seed, 1)
	w := &World{hooks: hooks, seed: seed, latency: r.logUniform(100*time.Microsecond, 30*time.Millisecond)}
	w.checker = newChecker(w)
	base := r.seconds(10, 15, 15, 15, 20, 30, 40, 60)
	if r.chance(0.08) {
		base = r.seconds(1, 2, 3, 5, 8) // a few, because they cost much
	}
	mixed := r.chance(0.15)
	if mixed {
		// client-go cuts times to whole seconds, so that it may take a lease up to a second before
		// its duration has passed since the last renewal: too early where D - R is shorter.
		base = max(base, 10*time.Second)
	}
	w.planCandidates(r, base, mixed)
	if mixed {
		for i := range 1 + r.IntN(2) {
			w.electors = append(w.electors, newElector(w, fmt.Sprint("client-go-", i), base, r))
		}
	}
	for _, c := range w.candidates {
		w.latency = min(w.latency, (c.renewDeadline-c.renewInterval)/40) // a tenth of a renewal's timeout
	}
	w.planProcesses(newRNG(seed, 13))
	w.planClocks(r)
	length := r.logUniform(10*time.Minute, 30*time.Minute)
	if base < 5*time.Second {
		length = 10 * time.Minute
	}
	w.faultsEnd = length - 4*w.longestDuration() - time.Minute
	w.planSlots(newRNG(seed, 23))
	w.planFaults(r)
	w.planCalls()
	w.planLinks(newRNG(seed, 20))
	w.planFinalizers(newRNG(seed, 21))
	w.planPriorities(newRNG(seed, 22))
	w.planHostile(newRNG(seed, 25))
	w.planBeats(newRNG(seed, 26))
	w.sortPlan()
	return w
}

// newClientGoWorld makes a world of client-go's electors alone, with settings that client-go accepts.
func newClientGoWorld(hooks Hooks, seed uint64) *World {
	r := newRNG(seed, 10)
	w := &World{
		hooks: hooks, seed: seed,
		latency: r.logUniform(100*time.Microsecond, 30*time.Millisecond), faultsEnd: 20 * time.Minute,
	}
	w.checker = newChecker(w)
	for i := range 2 + r.IntN(3) {
		e := newElector(w, fmt.Sprint("client-go-", i), 15*time.Second, r)
		if seed%2 == 0 {
			e.config.RenewDeadline, e.config.RetryPeriod = 14*time.Second, 5*time.Second
		}
		w.electors = append(w.electors, e)
	}
	w.planFaults(r)
	w.sortPlan()
	return w
}

// duplicate is the identity that two candidates have by mistake.
const duplicate = "duplicate"

// planCandidates makes two to seven candidates.
func (w *World) planCandidates(r rng, base time.Duration, mixed bool) {
	differ, identities := r.chance(0.25), r.IntN(10)
	count := 2 + min(r.IntN(6), r.IntN(6))
	for i := range count {
		c := &candidate{settings: settings{duration: base}, name: string(rune('a' + i))}
		if differ && r.chance(0.5) {
			c.duration = r.seconds(10, 15, 30, 60)
		}
		c.renewDeadline = c.duration / 10 * 8
		switch {
		case mixed: // as above
		case r.chance(0.15):
			c.renewDeadline = c.duration / 10 * 9
		case r.chance(0.25):
			c.renewDeadline = r.uniform(c.duration*4/10, c.duration*9/10)
		}
		c.renewInterval = min(c.duration/5, c.renewDeadline/2)
		switch {
		case r.chance(0.1):
			c.renewInterval = c.renewDeadline / 2
		case r.chance(0.2):
			c.renewInterval = r.uniform(max(c.renewDeadline/10, 100*time.Millisecond), c.renewDeadline/2)
		}
		if i > 0 { // the first one can always lead in the end
			switch {
			case r.chance(0.15):
				c.mode = leasehold.UseExisting
			case r.chance(0.1):
				c.mode = leasehold.CreateNew
			}
		}
		switch {
		case identities < 5: // one for each campaign
		case identities < 9, i > 1:
			c.identity = c.name
		default: // two by mistake
			c.identity = duplicate
		}
		c.link = w.newLink(c.name)
		c.world = w
		w.candidates = append(w.candidates, c)
	}
}

// planProcesses puts some candidates into one process, in some worlds.
func (w *World) planProcesses(r rng) {
	if !r.chance(0.5) {
		return
	}
	sharedFrom, processes := 1, 1+r.IntN(3)
	if r.chance(0.3) {
		sharedFrom = 2 // watches of their own become a shared one, which comes and goes
	}
	for i, c := range w.candidates {
		first := w.candidates[i%processes%len(w.candidates)]
		if first.process == nil {
			first.process = &process{link: first.link}
		}
		c.process, c.sharedFrom = first.process, sharedFrom
		c.renewInterval = min(first.renewInterval, c.renewDeadline/2) // those with the same share a watch
	}
}

// longestDuration returns the longest duration that anybody records.
func (w *World) longestDuration() (longest time.Duration) {
	for _, c := range w.candidates {
		longest = max(longest, c.duration)
	}
	for _, e := range w.electors {
		longest = max(longest, e.config.LeaseDuration)
	}
	return longest
}

// shortestDuration returns the shortest duration that a candidate records, at most 15 s.
func (w *World) shortestDuration() time.Duration {
	shortest := 15 * time.Second
	for _, c := range w.candidates {
		shortest = min(shortest, c.duration)
	}
	return shortest
}

// planClocks gives each candidate a clock whose rate differs from every other's by less than D/R. client-go's electors
// use the world's own.
func (w *World) planClocks(r rng) {
	bound := math.Inf(1)
	for _, c := range w.candidates {
		bound = min(bound, float64(c.duration)/float64(c.renewDeadline))
	}
	for _, e := range w.electors {
		bound = min(bound, float64(e.config.LeaseDuration)/float64(e.config.RenewDeadline))
	}
	bound = math.Pow(bound, 0.97)
	for _, c := range w.candidates {
		c.rate = 1
		switch {
		case r.chance(0.3):
		case r.chance(0.5):
			c.rate = math.Pow(bound, r.Float64()-0.5)
		case r.chance(0.5):
			c.rate = math.Sqrt(bound)
		default:
			c.rate = 1 / math.Sqrt(bound)
		}
		if len(w.electors) > 0 {
			c.rate = max(c.rate, 1.01*float64(c.renewDeadline)/float64(c.duration-time.Second))
		}
	}
}

// planFaults decides what will go wrong, and what an operator will do.
func (w *World) planFaults(r rng) {
	longest := w.longestDuration()
	anyTime := func() time.Duration { return r.uniform(0, w.faultsEnd) }
	rounds := 1 + r.IntN(1+int(w.faultsEnd/longest))
	for range rounds {
		w.windows = append(w.windows, w.newFaultWindow(r, anyTime(), longest))
	}
	for range rounds {
		w.planNetwork(r, anyTime(), longest)
	}
	for range r.IntN(6) * min(1, len(w.candidates)) {
		c := w.candidates[r.IntN(len(w.candidates))]
		d := r.logUniform(time.Second, 2*c.duration)
		w.plan(anyTime(), c.name, fmt.Sprintf("its machine is suspended for %v", d), func() { c.suspend(d) })
	}
	for _, c := range w.candidates {
		for range r.IntN(4) {
			from := anyTime()
			if r.chance(0.2) {
				from = 0 // starts later than others
			}
			c.downtimes = append(c.downtimes,
				interval{from, min(w.faultsEnd, from+r.logUniform(time.Second, 4*longest))})
		}
	}
	for _, e := range w.electors {
		for range r.IntN(4) {
			from := anyTime()
			e.downtimes = append(e.downtimes,
				interval{from, min(w.faultsEnd, from+r.logUniform(time.Second, 2*longest))})
		}
	}
	if r.chance(0.6) && len(w.candidates) > 0 {
		for range r.IntN(6) {
			w.planOperator(r, anyTime(), longest)
		}
	}
}

// planLinks makes some links bad ones for a while, in some worlds: slow, jittering or asymmetric, or behind a proxy
// that answers 404 now and then.
func (w *World) planLinks(r rng) {
	longest := w.longestDuration()
	if r.chance(0.3) {
		for range 1 + r.IntN(3) {
			w.windows = append(w.windows, w.newSlowWindow(r, r.uniform(0, w.faultsEnd), longest))
		}
	}
	if r.chance(0.3) {
		for range 1 + r.IntN(6) {
			w.windows = append(w.windows, w.newNotFoundWindow(r, r.uniform(0, w.faultsEnd)))
		}
	}
}

// planFinalizers has a finalizer put onto the Lease for a while, in some worlds whose candidates delete it.
func (w *World) planFinalizers(r rng) {
	if !slices.ContainsFunc(w.candidates, func(c *candidate) bool { return c.deletes }) || r.chance(0.3) {
		return
	}
	for range 1 + r.IntN(4) {
		name := w.aLease(r)
		at := r.uniform(0, w.faultsEnd-1)
		until := min(w.faultsEnd-1, at+r.logUniform(time.Second, 20*w.longestDuration()))
		w.plan(at, "controller", "adds a finalizer", func() {
			w.srv.Edit(namespace, name, func(l *coordinationv1.Lease) { l.Finalizers = []string{"example.com/sim"} })
		})
		w.plan(until, "controller", "removes the finalizer", func() {
			l := w.srv.Edit(namespace, name, func(l *coordinationv1.Lease) { l.Finalizers = nil })
			if l != nil && l.DeletionTimestamp != nil {
				w.srv.Delete(namespace, name)
			}
		})
	}
}

// planSlots makes a semaphore of the lease, in some worlds. Candidates may disagree about how many slots there are.
func (w *World) planSlots(r rng) {
	if len(w.electors) > 0 || !r.chance(0.25) {
		return
	}
	w.slots = 1 + r.IntN(4)
	disagree := r.chance(0.3)
	for i, c := range w.candidates {
		c.slots = w.slots
		if i > 0 && disagree {
			c.slots = 1 + r.IntN(w.slots)
		}
		if c.mode == leasehold.CreateNew {
			c.mode = leasehold.AutoCreate
		}
	}
	w.checker.oracles = map[string]*oracle.Oracle{}
	for _, lease := range w.leases() {
		w.checker.addOracle(lease)
	}
	w.checker.oracle = w.checker.oracles[w.leases()[0]]
}

// aLease returns the name of the Lease that an operator does something to.
func (w *World) aLease(r rng) string {
	leases := w.leases()
	if len(leases) == 1 {
		return leases[0]
	}
	return leases[r.IntN(len(leases))]
}

// planPriorities gives candidates priorities, in some worlds.
func (w *World) planPriorities(r rng) {
	if w.slots > 0 || !r.chance(0.4) {
		return
	}
	w.prioritized = true
	for _, c := range w.candidates {
		if r.chance(0.7) {
			c.priority = new(r.IntN(4))
		}
		c.yields = r.chance(0.4)
	}
}

// planBeats has candidates show that their work goes on, and publish addresses, in some worlds.
func (w *World) planBeats(r rng) {
	if !r.chance(0.3) {
		return
	}
	for _, c := range w.candidates {
		if r.chance(0.5) {
			c.beat = r.logUniform(time.Second, 4*c.duration)
		}
		if r.chance(0.5) {
			c.address = c.name + ":8080"
		}
	}
}

func (w *World) plan(at time.Duration, who, what string, do func()) {
	w.actions = append(w.actions, action{at, who, what, do})
}

// sortPlan puts the plan into the order of time.
func (w *World) sortPlan() {
	slices.SortStableFunc(w.windows, func(a, b faultWindow) int { return cmp.Compare(a.from, b.from) })
	slices.SortStableFunc(w.actions, func(a, b action) int { return cmp.Compare(a.at, b.at) })
}

// planNetwork plans one fault of a link or its watches.
func (w *World) planNetwork(r rng, at, longest time.Duration) {
	l := w.links[r.IntN(len(w.links))]
	until := min(w.faultsEnd, at+r.logUniform(time.Second, 3*longest))
	switch r.IntN(12) {
	case 0, 1:
		w.plan(at, l.name, "is cut off", func() { l.cut(true) })
		w.plan(until, l.name, "is reachable again", func() { l.cut(false) })
	case 8, 9, 10, 11:
		var holder *link
		w.plan(at, "holder", "is cut off", func() {
			if holder = w.holderLink.Load(); holder != nil {
				holder.cut(true)
			}
		})
		w.plan(until, "holder", "of that time is reachable again", func() {
			if holder != nil {
				holder.cut(false)
			}
		})
	case 2:
		backlog := r.chance(0.5)
		w.plan(at, l.name, "watches fall silent", func() { l.client.SilenceWatches() })
		w.plan(until, l.name, fmt.Sprintf("watches resume, backlog %v", backlog), func() {
			l.client.ResumeWatches(backlog)
		})
	case 3:
		w.plan(at, l.name, "watches fall silent for good", func() { l.client.SilenceWatches() })
	case 4:
		err := []error{nil, leasetest.InternalError(), apierrors.NewResourceExpired("too old")}[r.IntN(3)]
		w.plan(at, l.name, fmt.Sprintf("watches end: %v", err), func() { l.client.CloseWatches(err) })
	case 5:
		n := 1 + r.IntN(20)
		w.plan(at, l.name, fmt.Sprintf("watches replay %d changes", n), func() { l.client.ReplayWatches(n) })
	case 6:
		event := []watch.Event{
			leasetest.Undecodable(), {Type: watch.Bookmark, Object: &coordinationv1.Lease{}}, {Type: "ODD"},
		}[r.IntN(3)]
		w.plan(at, l.name, fmt.Sprintf("watches bring an odd event %q", event.Type), func() {
			l.client.SendEvent(event)
		})
	case 7:
		w.plan(at, "server", "is restarted: watches end, their past is gone", func() {
			w.srv.Compact()
			w.srv.CloseWatches(nil)
		})
	}
}

// planOperator plans one action of an operator on the Lease.
func (w *World) planOperator(r rng, at, longest time.Duration) {
	name := w.aLease(r)
	lease := func(holder string) *coordinationv1.Lease {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		if holder != "" {
			now := metav1.NewMicroTime(time.Now().Add(r.uniform(-time.Hour, time.Hour)))
			l.Spec = coordinationv1.LeaseSpec{
				HolderIdentity: &holder, AcquireTime: &now, RenewTime: &now,
				// As long as the ousted holder's: an operator who takes a lease by force has to wait for its
				// holder, and others can only use what is written.
				LeaseDurationSeconds: new(int32(longest / time.Second)),
			}
		}
		return l
	}
	operator := func(what string, do func()) { w.plan(at, "operator", what, do) }
	edit := func(f func(*coordinationv1.Lease)) { w.srv.Edit(namespace, name, f) }
	switch r.IntN(8) {
	case 0, 1:
		operator("labels the Lease", func() {
			edit(func(l *coordinationv1.Lease) { l.Labels = map[string]string{"at": fmt.Sprint(at.Seconds())} })
		})
	case 2, 3:
		operator("gives the lease to a thief", func() {
			edit(func(l *coordinationv1.Lease) { l.Spec = lease("thief").Spec })
		})
	case 4:
		operator("empties the lease", func() {
			edit(func(l *coordinationv1.Lease) {
				l.Spec = coordinationv1.LeaseSpec{LeaseTransitions: l.Spec.LeaseTransitions}
			})
		})
	case 5:
		operator("deletes the Lease", func() { w.srv.Delete(namespace, name) })
	case 6:
		operator("deletes the Lease and creates a free one", func() {
			w.srv.Delete(namespace, name)
			w.srv.Put(lease(""))
		})
	case 7:
		operator("deletes the Lease and creates one held by a thief", func() {
			w.srv.Delete(namespace, name)
			w.srv.Put(lease("thief"))
		})
	}
}

// planCalls decides by which call each candidate campaigns, with which of the options that change what a release or a
// restart does, and whether there are an observer and calls of Vacate.
func (w *World) planCalls() {
	identities := map[string]int{}
	for _, c := range w.candidates {
		identities[c.identity]++
	}
	deletes := newRNG(w.seed, 11).chance(0.2)
	for i, c := range w.candidates {
		r := newRNG(w.seed, 11, uint64(i))
		if i > 0 && r.chance(0.3) { // the first one can always lead in the end
			c.call = call(1 + r.IntN(3))
		}
		c.deletes = deletes && r.chance(0.7)
		c.reclaims = c.identity != "" && identities[c.identity] == 1 && r.chance(0.3) && w.slots == 0
	}
	if w.slots > 0 {
		return // those that follow are about one Lease
	}
	r := newRNG(w.seed, 12)
	if r.chance(0.3) {
		w.observer = &observer{world: w, link: w.newLink("observer")}
	}
	if r.chance(0.3) {
		l := w.newLink(vacater)
		for range 1 + r.IntN(3) {
			at := r.uniform(0, w.faultsEnd-1)
			w.plan(at, vacater, "begins to vacate the lease of its holder", func() { w.vacate(l) })
		}
	}
}
