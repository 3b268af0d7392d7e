package oracle

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// A Work is the work on one key of a group, in one session of the key.
type Work[S comparable] struct {
	Key     string
	Worker  string // who works
	Session S
	Token   uint64        // of the session
	Since   time.Duration // when it began, on any clock that is the same for all

	// Live reports whether it may go on. Once it does not, it never does again. Nil means that it may until End.
	Live func() bool
}

func (w *Work[S]) String() string {
	return fmt.Sprintf("%s (token %d, since %v)", w.Worker, w.Token, w.Since)
}

func (w *Work[S]) live() bool { return w.Live == nil || w.Live() }

// Keys judges who works on the keys of a group: nobody begins with a key while other work on it is live, and each
// session of a key has a greater token than those before it. Work can be told as it begins, and then has Live; or
// afterwards, out of a journal, in the order in which it began and ended.
type Keys[S comparable] struct {
	fail func(next *Work[S], fault string)

	mu     sync.Mutex            // protects following
	works  map[string][]*Work[S] // by key: those that did not end
	newest map[string]*Work[S]   // by key: the one with the greatest token
}

// NewKeys returns a judge that tells fail of each violation: which work must not have begun, and why. It calls fail
// with its lock held.
func NewKeys[S comparable](fail func(next *Work[S], fault string)) *Keys[S] {
	return &Keys[S]{fail: fail, works: map[string][]*Work[S]{}, newest: map[string]*Work[S]{}}
}

// Begin judges work that begins.
func (k *Keys[S]) Begin(w *Work[S]) {
	k.mu.Lock()
	defer k.mu.Unlock()
	others := slices.DeleteFunc(k.works[w.Key], func(other *Work[S]) bool { return !other.live() })
	k.works[w.Key] = append(others, w)
	newest := k.newest[w.Key]
	if newest == nil || newest.Token < w.Token {
		k.newest[w.Key] = w
	}
	// It is asked last: what is live now was live when all others were found to be. What is told late, and is over,
	// may have begun before them.
	if !w.live() {
		return
	}
	for _, other := range others {
		k.fail(w, fmt.Sprintf("%v begins %s beside %v", w, w.Key, other))
	}
	if newest != nil && newest.Session != w.Session && newest.Token >= w.Token {
		k.fail(w, fmt.Sprintf("%v begins %s after %v, whose token is not smaller", w, w.Key, newest))
	}
}

// End says that work has ended.
func (k *Keys[S]) End(w *Work[S]) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.works[w.Key] = slices.DeleteFunc(k.works[w.Key], func(other *Work[S]) bool { return other == w })
}

// Live returns the work that is live now.
func (k *Keys[S]) Live() (live []*Work[S]) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, works := range k.works {
		for _, w := range works {
			if w.live() {
				live = append(live, w)
			}
		}
	}
	return live
}
