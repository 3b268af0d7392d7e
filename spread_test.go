package leasehold

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A fleet is a group in virtual time. It watches over the exclusion of each key, and over the order of tokens, in every
// test.
type fleet struct {
	*world
	mu     sync.Mutex
	live   map[string]map[Session]string // by key: the sessions whose context has not ended, and who has them
	tokens map[string]uint64
	starts map[string]int
}

func inFleet(t *testing.T, test func(f *fleet)) {
	t.Helper()
	inWorld(t, func(w *world) {
		f := &fleet{world: w, live: map[string]map[Session]string{}, tokens: map[string]uint64{}, starts: map[string]int{}}
		w.srv.OnCommit(func(leasetest.Change) {})
		test(f)
	})
}

// enter notes a session of key that begins at a member.
func (f *fleet) enterKey(s Session, key, member string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other, who := range f.live[key] {
		if other.Err() == nil {
			f.Errorf("%v: %s begins %s while %s has a live session of it", time.Now(), member, key, who)
		}
	}
	if s.FencingToken() <= f.tokens[key] {
		f.Errorf("%v: %s begins %s with token %d, not above %d", time.Now(), member, key, s.FencingToken(), f.tokens[key])
	}
	f.tokens[key] = s.FencingToken()
	if f.live[key] == nil {
		f.live[key] = map[Session]string{}
	}
	f.live[key][s] = member
	f.starts[key]++
}

func (f *fleet) leaveKey(s Session, key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.live[key], s)
}

// owners returns who has a live session of which keys.
func (f *fleet) owners() map[string][]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	owners := map[string][]string{}
	for key, sessions := range f.live {
		for s, who := range sessions {
			if s.Err() == nil {
				owners[who] = append(owners[who], key)
			}
		}
	}
	for _, keys := range owners {
		slices.Sort(keys)
	}
	return owners
}

// shape describes who has keys, and how many: the most first.
func (f *fleet) shape() string {
	owners := f.owners()
	var counts []int
	for _, keys := range owners {
		counts = append(counts, len(keys))
	}
	slices.Sort(counts)
	slices.Reverse(counts)
	return fmt.Sprint(strings.Join(slices.Sorted(maps.Keys(owners)), " "), counts)
}

// spread starts a member whose work lasts until its session ends.
func (f *fleet) spread(member string, keys <-chan []string, opts ...Option) *runner {
	return f.spreadWork(member, keys, func(s Session, key string) error {
		<-s.Done()
		return nil
	}, opts...)
}

func (f *fleet) spreadWork(
	member string, keys <-chan []string, work func(Session, string) error, opts ...Option,
) *runner {
	ctx, cancel := context.WithCancel(f.Context())
	c := &runner{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = Spread(ctx, keys, func(s Session, key string) error {
			f.enterKey(s, key, member)
			defer f.leaveKey(s, key)
			return work(s, key)
		}, f.options(member, opts...)...)
	}()
	synctest.Wait()
	return c
}

func numbered(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%04d", i)
	}
	return keys
}

func (f *fleet) wantShape(want string) {
	f.Helper()
	if got := f.shape(); got != want {
		f.Errorf("%v: members have %q, want %q", time.Now(), got, want)
	}
}

func TestSpread(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(10)...))
		f.sleep(2 * time.Second)
		f.wantShape("a[10]")
		b := f.spread("b", Keys(numbered(10)...))
		f.sleep(I + time.Second)
		f.wantShape("a b[5 5]")
		c := f.spread("c", Keys(numbered(10)...))
		f.sleep(I + time.Second)
		f.wantShape("a b c[4 3 3]")
		b.quit()
		f.sleep(time.Second)
		f.wantShape("a c[5 5]")
		a.quit()
		f.sleep(time.Second)
		f.wantShape("c[10]")
		c.quit()
		f.wantShape("[]")
		for _, r := range []*runner{a, b, c} {
			if r.err != context.Canceled {
				f.Errorf("error %v", r.err)
			}
		}
	})
}
