package leasehold

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// A Ring is this process's part in sharing out a keyspace, for reconcilers: which buckets of keys it owns.
type Ring struct {
	group   *group
	buckets int
	ended   chan struct{} // closed when the ring has left
	err     error         // why it ended; readable once ended is closed, as is
	panic   any           // what the program's code panicked with

	mu       sync.Mutex          // protects following
	owned    map[int]*keySession // the live ones
	users    map[*keySession]int // how many entered and did not leave
	draining map[*keySession]bool
	changes  map[*ringChanges]bool
}

// A Change says that a bucket was gained or given up. The bucket of a key is the upper half of the product of its
// 64-bit FNV-1a hash and the number of buckets, as ExampleShares_bucket computes it.
type Change struct {
	Bucket  int
	Gained  bool
	Session Session // of the bucket; one that has ended where it was given up
}

// Join takes part in sharing out a keyspace of a number of buckets, 1 to 65,536, among the processes that join the same
// group, which WithLease names. A bucket is a contiguous range of the 64-bit FNV-1a hash of the key, as Kubernetes'
// sharded list and watch hashes it (KEP-5866). At most one process owns a bucket at any instant, and each renews one
// Lease however many buckets it owns.
//
// Join returns at once. The ring leaves when ctx ends, and has left when Wait returns: everything that entered must
// leave then. All members must use the same number of buckets; one that has another waits until the others are gone.
//
// The error is about the options or the client configuration.
func Join(ctx context.Context, buckets int, opts ...Option) (*Ring, error) {
	opts = append(slices.Clip(opts), func(o *options) {
		if buckets < 1 || buckets > shards.MaxBuckets {
			o.fault("Join: want 1 to %d buckets, not %d", shards.MaxBuckets, buckets)
		}
	})
	r := &Ring{
		buckets: buckets, ended: make(chan struct{}), owned: map[int]*keySession{}, users: map[*keySession]int{},
		draining: map[*keySession]bool{}, changes: map[*ringChanges]bool{},
		err: errors.New("leasehold: Join: the program's code exited its goroutine"), // unless another follows
	}
	joined := make(chan struct{})
	go func() {
		defer close(r.ended)
		defer r.end()
		defer func() { r.panic = recover() }()
		r.err = inGroup(ctx, opts, func(c *campaign, name string) error {
			g := newGroup(c, name, buckets)
			g.worker, r.group = r, g
			defer c.options.monitor.openGroup(g)()
			close(joined)
			c.start()
			return g.run()
		})
	}()
	select {
	case <-joined:
	case <-r.ended:
		if r.group == nil {
			return nil, r.Wait()
		}
	}
	return r, nil
}

// Wait returns when everything is given back, after ctx ended, and says why the ring ended: context.Cause of ctx, or
// that a Lease with the name of the group is not a group's.
func (r *Ring) Wait() error {
	<-r.ended
	if r.panic != nil {
		panic(r.panic)
	}
	return r.err
}

// Owns reports whether this process owns the bucket of key now.
func (r *Ring) Owns(key string) bool {
	r.mu.Lock()
	s := r.owned[shards.BucketOf(key, r.buckets)]
	r.mu.Unlock()
	return s != nil && s.Err() == nil
}

// Enter begins work on the bucket of key, in the session that it returns. It is false when the bucket is another
// process's, or is about to be. The bucket is given on only when each leave was called; calling one again does nothing.
func (r *Ring) Enter(key string) (s Session, leave func(), ok bool) {
	r.mu.Lock()
	k := r.owned[shards.BucketOf(key, r.buckets)]
	if k != nil {
		r.users[k]++
	}
	r.mu.Unlock()
	if k == nil {
		return Session{}, func() {}, false
	}
	leave = sync.OnceFunc(func() { r.leave(k) })
	if k.Err() != nil {
		leave()
		return Session{}, func() {}, false
	}
	return Session{k}, leave, true
}

func (r *Ring) leave(s *keySession) {
	r.mu.Lock()
	r.users[s]--
	over := r.users[s] == 0
	if over {
		delete(r.users, s)
	}
	over = over && r.draining[s]
	if over {
		delete(r.draining, s)
	}
	r.mu.Unlock()
	if over {
		r.group.returned(s, false)
	}
}

func (r *Ring) start(s *keySession) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owned[s.bucket()] = s
	r.changedLocked(s.bucket())
}

func (r *Ring) stop(s *keySession) {
	r.mu.Lock()
	if r.owned[s.bucket()] == s {
		delete(r.owned, s.bucket())
		r.changedLocked(s.bucket())
	}
	over := r.users[s] == 0 && !s.over.Load()
	if !over && !s.over.Load() {
		r.draining[s] = true
	}
	r.mu.Unlock()
	if over {
		r.group.returned(s, false)
	}
}

// Selector returns the ranges of hashes that this process owns, as a shardSelector (ListOptions.ShardSelector) about a
// field, such as "object.metadata.uid". Where it owns none it is a selector that matches nothing.
func (r *Ring) Selector(field string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return shards.Selector(field, r.buckets, func(bucket int) bool { return r.owned[bucket] != nil })
}

// Changes yields what this process gains and gives up: first what it owns. A bucket that changes again before its
// change was yielded is yielded once, as it is then. Enter succeeds before a gain is yielded, and fails before a loss
// is. The sequence ends when the ring has left. A body that is slow never holds up the ring.
func (r *Ring) Changes() iter.Seq[Change] {
	return func(yield func(Change) bool) {
		w := &ringChanges{news: newWakeup(), pending: map[int]bool{}, told: map[int]*keySession{}}
		r.mu.Lock()
		r.changes[w] = true
		for bucket := range r.owned {
			w.addLocked(bucket)
		}
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.changes, w)
		}()
		for ended := false; ; {
			change, ok := r.nextChange(w)
			switch {
			case ok:
				if !yield(change) {
					return
				}
				continue
			case ended:
				return
			}
			select {
			case <-w.news:
			case <-r.ended:
				ended = true
			}
		}
	}
}

// A ringChanges is one loop over the changes. The ring's mu protects it.
type ringChanges struct {
	news    wakeup
	order   []int // buckets that changed, the oldest first
	pending map[int]bool
	told    map[int]*keySession // what was yielded as gained
}

func (w *ringChanges) addLocked(bucket int) {
	if !w.pending[bucket] {
		w.pending[bucket] = true
		w.order = append(w.order, bucket)
	}
	w.news.signal()
}

// changedLocked tells all loops that a bucket has changed. The caller holds mu.
func (r *Ring) changedLocked(bucket int) {
	for w := range r.changes {
		w.addLocked(bucket)
	}
}

// nextChange returns the oldest change that was not yielded.
func (r *Ring) nextChange(w *ringChanges) (Change, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(w.order) > 0 {
		bucket := w.order[0]
		now, before := r.owned[bucket], w.told[bucket]
		switch {
		case now == before:
		case before != nil: // also where it was gained again: that comes next
			delete(w.told, bucket)
			if now == nil {
				w.doneLocked(bucket)
			}
			return Change{Bucket: bucket, Session: Session{before}}, true
		default:
			w.told[bucket] = now
			w.doneLocked(bucket)
			return Change{Bucket: bucket, Gained: true, Session: Session{now}}, true
		}
		w.doneLocked(bucket)
	}
	return Change{}, false
}

func (w *ringChanges) doneLocked(bucket int) {
	w.order = w.order[1:]
	delete(w.pending, bucket)
}

// end says to all loops that the ring has left.
func (r *Ring) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for bucket := range r.owned {
		delete(r.owned, bucket)
		r.changedLocked(bucket)
	}
}
