package leasehold

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// A leaseMemory is what TryAcquire saw of leases in this process, by the uid of the Lease.
type leaseMemory struct {
	mu   sync.Mutex // protects seen
	seen map[types.UID]memorized
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

// recall gives the store of a Lease that was just read the time since which its holder has done nothing, and
// remembers what it has read.
func (m *leaseMemory) recall(s *leaseStore) {
	o := s.latest()
	if !o.held() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if before, ok := m.seen[o.uid]; ok {
		o = s.backdate(before.observation)
	}
	if m.seen == nil {
		m.seen = map[types.UID]memorized{}
	}
	m.seen[o.uid] = memorized{o, time.Now()}
	if len(m.seen) > maxMemorized {
		m.forgetOldestLocked()
	}
}

// forgetOldestLocked forgets the lease that was read the longest time ago. The caller holds mu.
func (m *leaseMemory) forgetOldestLocked() {
	var oldest types.UID
	for uid, s := range m.seen {
		if oldest == "" || s.read.Before(m.seen[oldest].read) {
			oldest = uid
		}
	}
	delete(m.seen, oldest)
}
