package leasehold

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// A leaseMemory is what TryAcquire saw of leases in this process that were held or not clear yet.
type leaseMemory struct {
	mu   sync.Mutex // protects seen
	seen map[leaseKey]memorized
}

// A memorized lease is a state of a Lease, and when it was read last.
type memorized struct {
	observation
	read time.Time
}

// maxMemorized bounds how many leases are remembered.
const maxMemorized = 1000

// processMemory is that of the process.
var processMemory leaseMemory

// A leaseKey says which Lease is remembered, and of which API server: its address, or the client.
type leaseKey struct {
	server          any
	namespace, name string
}

// recall returns what is remembered of a Lease.
func (m *leaseMemory) recall(key leaseKey) observation {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[key].observation
}

// resume lets the store of a Lease that was just read go on from what is remembered of it, and remembers the outcome.
// before was remembered when the read was sent.
func (m *leaseMemory) resume(s *leaseStore, key leaseKey, before observation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := s.resume(m.seen[key].observation, before)
	if !o.held() && !o.clearAt().After(s.clock.now().mono) {
		delete(m.seen, key)
		return
	}
	if m.seen == nil {
		m.seen = map[leaseKey]memorized{}
	}
	m.seen[key] = memorized{o, time.Now()}
	if len(m.seen) > maxMemorized {
		m.forgetOldestLocked()
	}
}

// forget forgets what is remembered of a Lease, if that is the one with uid, which was deleted when nobody held it.
func (m *leaseMemory) forget(key leaseKey, uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen[key].uid == uid {
		delete(m.seen, key)
	}
}

// forgetOldestLocked forgets the lease that was read the longest time ago. The caller holds mu.
func (m *leaseMemory) forgetOldestLocked() {
	var oldest leaseKey
	for key, s := range m.seen {
		if oldest.name == "" || s.read.Before(m.seen[oldest].read) {
			oldest = key
		}
	}
	delete(m.seen, oldest)
}
