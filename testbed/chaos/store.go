package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/rpc"
	"sync"
	"time"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// A Write is a request of a body to the store.
type Write struct {
	Lease, Session, Candidate string
	Token                     uint64        // 0 without one: written without fencing only
	Looked                    time.Duration // when the body last found its session live
}

// A decision is the result of a write: one line of the store's journal, in the order of the decisions.
type decision struct {
	At       time.Duration `json:"at"`
	Lease    string        `json:"lease"`
	Session  string        `json:"s"`
	Token    uint64        `json:"token,omitempty"`
	Accepted bool          `json:"ok,omitempty"` // by the fenced register
}

// A Store has two registers for each lease: the fenced one refuses a write with a smaller token than an earlier one,
// the other accepts all writes. Bodies call it by net/rpc.
type Store struct {
	mu      sync.Mutex
	journal *json.Encoder
	highest map[string]uint64 // by lease
	newest  map[string]Write  // by lease: the one with the latest check
}

func newStore(journal io.Writer) *Store {
	return &Store{journal: json.NewEncoder(journal), highest: map[string]uint64{}, newest: map[string]Write{}}
}

// Put writes to both registers and reports whether the fenced one refused.
func (s *Store) Put(w Write, refused *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	*refused = w.Token != 0 && w.Token < s.highest[w.Lease]
	s.highest[w.Lease] = max(s.highest[w.Lease], w.Token)
	if w.Looked > s.newest[w.Lease].Looked {
		s.newest[w.Lease] = w
	}
	return s.journal.Encode(decision{boottime.Now(), w.Lease, w.Session, w.Token, w.Token != 0 && !*refused})
}

// leader returns the last write of a session that was live.
func (s *Store) leader(lease string) Write {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest[lease]
}

// serve serves the store on a socket until stop is called.
func (s *Store) serve(socket string) (stop func(), err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	server := rpc.NewServer()
	if err := server.Register(s); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]struct{}{}
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = struct{}{}
			mu.Unlock()
			group.Go(func() {
				server.ServeConn(c)
				mu.Lock()
				defer mu.Unlock()
				delete(conns, c)
			})
		}
	})
	return func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		group.Wait()
	}, nil
}
