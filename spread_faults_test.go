package leasehold

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/annotation"
	"github.com/leasehold-go/leasehold/internal/seeds"
	"github.com/leasehold-go/leasehold/internal/shards"
	"github.com/leasehold-go/leasehold/leasetest"
)

var groupWorlds = seeds.New("group", "sessions of keys", "virtual hours")

// TestGroups plays groups with all kinds of faults. fleet judges that no key has two live sessions, and that tokens
// increase (S6, G1, G7); after the last fault every key is owned, within one of each other by weight (S2), and members
// do no more than renew (S1). Then one member crashes and another joins: all is owned again in time, and no more moves
// and is written than has to be (S3, S4, S5). A seed that fails is replayed by
//
//	go test -v -run TestGroups -group.seed=N .
//
// and more are played by
//
//	go test -v -run TestGroups -group.for=1h -group.from=100000 -timeout 0 .
func TestGroups(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() {
		seeds = 30
	}
	groupWorlds.Check(t, seeds, func(seed uint64) []float64 {
		var sessions, hours float64
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				if groupWorlds.Seed() != 0 {
					defer func() { t.Logf("log:\n%s", f.log.String()) }()
				}
				began := time.Now()
				newGroupWorld(f, seed).play()
				hours = time.Since(began).Hours()
				for _, starts := range f.starts {
					sessions += float64(starts)
				}
			})
		})
		return []float64{sessions, hours}
	})
}

// A groupWorld plays one group.
type groupWorld struct {
	*fleet
	chance  *rand.Rand
	keys    []string
	members []*groupMember
	names   int
	saved   []*coordinationv1.Lease // tables of earlier

	// A member's Lease may be all that tells that a table was restored, so that it is not deleted by hand within the
	// duration of that, which is a limit.
	restored, deleted time.Time // when that was last done

	slow    bool        // bodies ignore their contexts for a while
	errs    bool        // work fails now and then
	most    int         // members at once
	wide    *groupWidth // nil where members are alike, few, and have few keys
	over    atomic.Bool // no more faults
	slowest float64     // the rate of the slowest clock

	writes atomic.Int64 // of tables, and fences
}

// A groupWidth is what differs between the members of a world, and between such worlds.
type groupWidth struct {
	chance  *rand.Rand
	ring    bool // Join, not Spread
	weights bool
	clocks  bool // they run at different rates, and machines are suspended
	moves   int  // of WithMoves; 0 for none
}

type groupMember struct {
	name   string
	stop   func()
	quit   func()
	weight int
	keys   chan []string
	client *leasetest.Client
	slept  atomic.Int64 // for how long its machine was suspended
	before atomic.Int64 // how long requests take to the server, and replies from it
	after  atomic.Int64
	gone   atomic.Bool
	wedged atomic.Bool // it writes its own Lease alone
}

// A machineClock is that of a machine that can be suspended, with a rate of its own.
type machineClock struct {
	rateClock
	slept *atomic.Int64
}

func (c machineClock) now() instant {
	now := c.rateClock.now()
	now.boot += time.Duration(c.slept.Load())
	return now
}

func newGroupWorld(f *fleet, seed uint64) *groupWorld {
	g := &groupWorld{fleet: f, chance: rand.New(rand.NewPCG(seed, 11)), most: 6, slowest: 1}
	g.keys = numbered(1 + g.chance.IntN(40))
	g.slow, g.errs = g.chance.IntN(3) == 0, g.chance.IntN(3) == 0
	if seed%2 == 0 {
		g.widen(rand.New(rand.NewPCG(seed, 12)))
	}
	f.srv.OnCommit(func(c leasetest.Change) {
		freed := strings.HasPrefix(c.New.Name, name+"-m-") && c.New.Spec.HolderIdentity == nil
		if c.New.Name == name || freed && c.Type == watch.Modified {
			g.writes.Add(1)
		}
	})
	return g
}

// widen makes a world of more members and keys, which are more different.
func (g *groupWorld) widen(chance *rand.Rand) {
	g.most = 8
	g.wide = &groupWidth{
		chance: chance, ring: chance.IntN(3) == 0, weights: chance.IntN(2) == 0, clocks: chance.IntN(2) == 0,
	}
	if chance.IntN(3) == 0 {
		g.wide.moves = 5 + chance.IntN(20)
	}
	g.keys = numbered(1 + chance.IntN(200))
	if g.wide.ring {
		g.keys = numbersOf(len(g.keys))
	}
	for range 1 + chance.IntN(4) {
		g.join()
	}
}

func (g *groupWorld) up(d time.Duration) time.Duration {
	return time.Duration(g.chance.Int64N(int64(d)))
}

func (g *groupWorld) play() {
	for range 1 + g.chance.IntN(4) {
		g.join()
	}
	for range 5 + g.chance.IntN(20) {
		g.sleep(g.up([]time.Duration{time.Second, I, D, 2 * D}[g.chance.IntN(4)]))
		g.fault()
	}
	g.calm()
}

// work is a body that may be slow to stop, and may end by itself.
func (g *groupWorld) work(seed uint64) func(s Session, key string) error {
	return func(s Session, key string) error {
		chance := rand.New(rand.NewPCG(seed, uint64(len(key))+uint64(s.FencingToken())))
		if g.errs && !g.over.Load() && chance.IntN(4) == 0 {
			select {
			case <-time.After(time.Duration(chance.Int64N(int64(time.Minute)))):
				switch {
				case g.over.Load():
				case chance.IntN(2) == 0:
					return errors.New("failed")
				default:
					return nil
				}
			case <-s.Done():
			}
		}
		<-s.Done()
		if g.slow && chance.IntN(3) == 0 && !g.over.Load() {
			time.Sleep(time.Duration(chance.Int64N(int64(5 * time.Second))))
		}
		return nil
	}
}

func (g *groupWorld) join() {
	if g.count() >= g.most {
		return
	}
	g.names++
	m := &groupMember{name: fmt.Sprintf("m%d", g.names), keys: make(chan []string, 1), weight: 1}
	m.know(g.keys)
	m.client = g.srv.Client(m.name)
	m.client.OnRequest(g.requestFault(m))
	seed := g.chance.Uint64()
	opts := g.wideOptions(m)
	if g.wide != nil && g.wide.ring {
		x := g.fleet.join(m.name, len(g.keys), opts...)
		go g.enterNowAndThen(x, seed)
		m.stop, m.quit = x.stop, func() { x.quit() }
	} else {
		r := g.spreadWork(m.name, m.keys, g.work(seed), opts...)
		m.stop, m.quit = r.stop, r.quit
	}
	g.members = append(g.members, m)
}

// wideOptions are the options of a member of a world of members that differ.
func (g *groupWorld) wideOptions(m *groupMember) (opts []Option) {
	if g.wide == nil {
		return nil
	}
	if g.wide.weights {
		m.weight = 1 + g.wide.chance.IntN(3)
		opts = append(opts, WithWeight(m.weight))
	}
	if g.wide.moves > 0 {
		opts = append(opts, WithMoves(g.wide.moves))
	}
	if g.wide.clocks {
		const bound = 0.99 * float64(D) / float64(R) // the rates of two differ by less than D/R
		rate := math.Pow(bound, g.wide.chance.Float64()-0.5)
		g.slowest = min(g.slowest, rate)
		opts = append(opts, withClock(machineClock{rateClock{time.Now(), rate}, &m.slept}))
	}
	return opts
}

// enterNowAndThen works on buckets of a ring, until it has left.
func (g *groupWorld) enterNowAndThen(x *ringer, seed uint64) {
	chance := rand.New(rand.NewPCG(seed, 13))
	for {
		select {
		case <-time.After(time.Duration(chance.Int64N(int64(time.Second)))):
		case <-x.done:
			return
		}
		s, leave, ok := x.Enter(fmt.Sprint("object-", chance.IntN(1000)))
		if !ok {
			continue
		}
		select {
		case <-time.After(time.Duration(chance.Int64N(int64(time.Second)))):
		case <-s.Done():
			if g.slow && !g.over.Load() {
				time.Sleep(time.Duration(chance.Int64N(int64(5 * time.Second))))
			}
		}
		leave()
	}
}

// know gives the member other keys.
func (m *groupMember) know(keys []string) {
	select {
	case <-m.keys: // it did not get these yet
	default:
	}
	m.keys <- keys
}

func (g *groupWorld) count() int {
	n := 0
	for _, m := range g.members {
		if !m.gone.Load() {
			n++
		}
	}
	return n
}

// requestFault makes each request take some milliseconds, and now and then loses one.
func (g *groupWorld) requestFault(m *groupMember) func(leasetest.Request) leasetest.Fault {
	chance := rand.New(rand.NewPCG(g.chance.Uint64(), 3))
	lossy := g.chance.IntN(3) == 0
	var mu sync.Mutex // protects chance and own
	var own string    // its Lease
	return func(r leasetest.Request) leasetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if g.over.Load() {
			return leasetest.Fault{Before: time.Millisecond, After: time.Millisecond}
		}
		f := leasetest.Fault{
			Before: time.Duration(chance.Int64N(int64(5*time.Millisecond)) + m.before.Load()),
			After:  time.Duration(chance.Int64N(int64(5*time.Millisecond)) + m.after.Load()),
		}
		switch r.Verb {
		case "get", "list", "watch":
		case "create", "apply":
			if strings.HasPrefix(r.Name, name+"-m-") {
				own = r.Name
			}
			fallthrough
		default:
			if m.wedged.Load() && r.Name != own {
				f.Err = leasetest.ServiceUnavailable()
			}
		}
		if lossy && chance.IntN(12) == 0 {
			switch chance.IntN(4) {
			case 0:
				f.Drop = leasetest.TheRequest
			case 1:
				f.Drop = leasetest.TheReply
			case 2:
				f.Err = leasetest.ServiceUnavailable()
			default:
				f.Before, f.Late = time.Duration(chance.Int64N(int64(20*time.Second))), true
			}
		}
		return f
	}
}

// any returns a member that has not gone, or nil.
func (g *groupWorld) any() *groupMember {
	var there []*groupMember
	for _, m := range g.members {
		if !m.gone.Load() {
			there = append(there, m)
		}
	}
	if len(there) == 0 {
		return nil
	}
	return there[g.chance.IntN(len(there))]
}

func (g *groupWorld) fault() {
	m := g.any()
	if m == nil || g.chance.IntN(5) == 0 {
		g.join()
		return
	}
	if g.wide != nil && g.wide.chance.IntN(5) == 0 {
		g.wideFault(m)
		return
	}
	switch g.chance.IntN(15) {
	case 0: // leaves
		m.gone.Store(true)
		m.stop()
	case 1: // crashes
		m.gone.Store(true)
		m.client.Partition(true)
	case 2, 3: // is cut off for a while
		m.client.Partition(true)
		d := g.up(2 * D)
		time.AfterFunc(d, func() {
			if !m.gone.Load() {
				m.client.Partition(false)
			}
		})
	case 4: // its watches are silent
		m.client.SilenceWatches()
	case 5: // its watches are late
		late := g.up(3 * time.Second)
		m.client.OnEvent(func(watch.Event) time.Duration { return late })
		time.AfterFunc(g.up(D), func() { m.client.OnEvent(nil) })
	case 6: // the API server is away
		for _, m := range g.members {
			m.client.Partition(true)
		}
		all := slices.Clone(g.members)
		time.AfterFunc(g.up(2*D), func() {
			for _, m := range all {
				if !m.gone.Load() {
					m.client.Partition(false)
				}
			}
		})
	case 7: // the table is deleted or filled with rubbish
		if g.chance.IntN(2) == 0 {
			g.srv.Delete(ns, name)
		} else if g.srv.Lease(ns, name) != nil {
			g.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
				l.Annotations[tableAnnotation] = []string{"", "rubbish"}[g.chance.IntN(2)]
			})
		}
	case 8: // the table of a while ago is restored
		if l := g.srv.Lease(ns, name); l != nil {
			g.saved = append(g.saved, l)
			if old := g.saved[g.chance.IntN(len(g.saved))]; g.chance.IntN(2) == 0 {
				g.sleep(I + time.Second) // until all that was seen is reported
				if g.srv.Lease(ns, name) != nil && time.Since(g.deleted) > g.byClocks(D) {
					g.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations = old.Annotations })
					g.restored = time.Now()
				}
			}
		}
	case 9: // a member's Lease is deleted
		for _, other := range g.leases() {
			if g.chance.IntN(3) == 0 && time.Since(g.restored) > g.byClocks(D) {
				g.srv.Delete(ns, other)
				g.deleted = time.Now()
				return
			}
		}
	case 11: // somebody removes the group's label from a member's Lease
		for _, other := range g.leases() {
			if g.chance.IntN(3) == 0 {
				g.srv.Edit(ns, other, func(l *coordinationv1.Lease) { delete(l.Labels, groupLabel) })
				return
			}
		}
	case 12: // its keys change
		var keys []string
		for _, key := range g.keys {
			if g.chance.IntN(4) > 0 {
				keys = append(keys, key)
			}
		}
		m.know(keys)
	case 10: // its watches end
		m.client.CloseWatches(nil)
	case 13: // somebody asks for its Lease
		for _, other := range g.leases() {
			if g.chance.IntN(2) == 0 {
				g.srv.Edit(ns, other, func(l *coordinationv1.Lease) {
					if at := l.Spec.AcquireTime; at != nil && l.Annotations != nil {
						l.Annotations[annotation.HandOver] = annotation.FormatHandOver(at.Time, "")
					}
				})
			}
		}
	case 14: // it writes nothing but its own renewals for a while
		m.wedged.Store(true)
		time.AfterFunc(g.up(4*D), func() { m.wedged.Store(false) })
	}
}

// wideFault is a fault of a world of members that differ.
func (g *groupWorld) wideFault(m *groupMember) {
	chance := g.wide.chance
	if g.wide.clocks && chance.IntN(3) == 0 { // its machine is suspended, and nothing else happens meanwhile
		m.slept.Add(chance.Int64N(int64(2 * D)))
		return
	}
	// Its link is a bad one, perhaps in one direction.
	long := 10 * time.Millisecond
	if chance.IntN(2) == 0 {
		long = 2 * time.Second
	}
	if chance.IntN(3) > 0 {
		m.before.Store(chance.Int64N(int64(long)))
	}
	if chance.IntN(3) > 0 {
		late := chance.Int64N(int64(long))
		m.after.Store(late)
		m.client.OnEvent(func(watch.Event) time.Duration { return time.Duration(late) })
	}
	time.AfterFunc(time.Duration(chance.Int64N(int64(4*D))), func() {
		m.before.Store(0)
		m.after.Store(0)
		m.client.OnEvent(nil)
	})
}

// leases returns the names of the members' Leases.
func (g *groupWorld) leases() (names []string) {
	list, err := g.srv.Client("operator").Leases(ns).List(g.Context(), metav1.ListOptions{})
	if err != nil {
		g.Fatal(err)
	}
	for _, l := range list.Items {
		if len(l.Name) > len(name)+3 && l.Name[:len(name)+3] == name+"-m-" {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return names
}

// calm ends all faults, and looks whether the group recovers.
func (g *groupWorld) calm() {
	g.over.Store(true)
	for _, m := range g.members {
		m.wedged.Store(false)
		m.client.OnEvent(nil)
		m.client.CloseWatches(nil)
		m.know(g.keys)
		if !m.gone.Load() {
			m.client.Partition(false)
		}
	}
	if g.count() == 0 {
		g.join()
	}
	g.sleep(30 * time.Second) // delayed requests, and slow bodies
	g.sleep(g.byClocks(3*D + 10*time.Second))
	g.checkShared()
	if !g.Failed() {
		g.checkQuiet()
		g.crashOne()
		g.joinOne()
	}
	for _, m := range g.members {
		m.client.Partition(false)
		m.quit()
	}
	synctest.Wait()
}

// byClocks returns how long it takes until d has passed by all clocks.
func (g *groupWorld) byClocks(d time.Duration) time.Duration {
	return time.Duration(float64(d) / g.slowest)
}

// checkShared checks that all keys are owned, by members that are there, within one of each other by weight (S2).
func (g *groupWorld) checkShared() {
	owners := g.owners()
	owned := 0
	for _, m := range g.members {
		n := len(owners[m.name])
		if m.gone.Load() {
			if n > 0 {
				g.Errorf("%v: %s is gone and owns %d keys", time.Now(), m.name, n)
			}
			continue
		}
		owned += n
		for _, other := range g.members {
			if n2 := len(owners[other.name]); !other.gone.Load() && (2*n-1)*other.weight > (2*n2+1)*m.weight {
				g.Errorf("%v: %s of weight %d owns %d keys, %s of weight %d owns %d", time.Now(),
					m.name, m.weight, n, other.name, other.weight, n2)
			}
		}
	}
	if owned != len(g.keys) {
		g.Errorf("%v: %d of %d keys are owned: %v", time.Now(), owned, len(g.keys), owners)
		g.describe()
	}
}

// checkQuiet checks that members send their renewals, by their own clocks, and next to nothing else (S1).
func (g *groupWorld) checkQuiet() {
	requests := func() (n int) {
		for _, m := range g.members {
			if !m.gone.Load() {
				n += m.client.Requests()
			}
		}
		return n
	}
	const intervals, most = 10, 25 // requests of each member
	before := requests()
	g.sleep(intervals * I)
	if n := requests() - before; n > most*g.count() {
		g.Errorf("%v: %d requests of %d members in %v, want at most %d of each", time.Now(), n, g.count(),
			intervals*I, most)
	}
}

// sessions returns how many sessions of keys there were.
func (g *groupWorld) sessions() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, starts := range g.starts {
		n += starts
	}
	return n
}

// crashOne crashes a member, be it the assigner or not. Its keys are owned again, nothing else moves (S3), and that
// takes a fence and a write or two of the table (S5). D and a second is enough (S4) where the watch of each member
// brings the table; one that does not is noticed a renew interval and a second after another member has reported that
// table.
func (g *groupWorld) crashOne() {
	m := g.any()
	if g.count() == 1 {
		return
	}
	lost, sessions, writes := len(g.owners()[m.name]), g.sessions(), g.writes.Load()
	m.gone.Store(true)
	m.client.Partition(true)
	g.sleep(g.byClocks(D + time.Second + I + time.Second))
	g.checkShared()
	if n := g.sessions() - sessions; n != lost {
		g.Errorf("%v: %s crashed with %d keys, and %d sessions began", time.Now(), m.name, lost, n)
	}
	if n := g.writes.Load() - writes; n > 4 {
		g.Errorf("%v: %d writes of the table and fences after a crash, want at most 4", time.Now(), n)
	}
}

// joinOne has a member join. Only what it is to have moves to it (S3).
func (g *groupWorld) joinOne() {
	if g.count() >= g.most {
		return
	}
	sessions := g.sessions()
	g.join()
	g.sleep(g.byClocks(3 * D))
	g.checkShared()
	m := g.members[len(g.members)-1]
	if n, has := g.sessions()-sessions, len(g.owners()[m.name]); n != has {
		g.Errorf("%v: %s joined and has %d keys, and %d sessions began", time.Now(), m.name, has, n)
	}
}

// describe logs the table, and what the members report.
func (g *groupWorld) describe() {
	list, _ := g.srv.Client("operator").Leases(ns).List(g.Context(), metav1.ListOptions{})
	for _, l := range list.Items {
		if text, ok := l.Annotations[tableAnnotation]; ok {
			t, err := shards.DecodeTable(text)
			g.Logf("%s: %+v %v", l.Name, t, err)
		} else if l.Spec.HolderIdentity != nil {
			g.Logf("%s of %s, renewed %v: %s", l.Name, *l.Spec.HolderIdentity, l.Spec.RenewTime,
				l.Annotations[memberAnnotation])
		}
	}
}
