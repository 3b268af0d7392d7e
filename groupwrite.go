package leasehold

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// A tableWriter writes the table, and knows which one it wrote last.
type tableWriter struct {
	membership *membership

	version uint64    // of the last table that it is known to have written
	sent    string    // the text of the last one, if no answer came
	sentAt  time.Time // when it was sent; zero if none was
}

// recognise finds that t is the table that was sent last, although no answer came.
func (w *tableWriter) recognise(t tableView) {
	if t.text == w.sent {
		w.version, w.sent = t.record.version, ""
	}
}

// wrote reports whether t is the last table that it wrote.
func (w *tableWriter) wrote(t tableView) bool { return w.version == t.record.version }

// untilNext returns how long to wait before another table is written, so that changes that come together are in one.
func (w *tableWriter) untilNext(now time.Time) time.Duration {
	if w.sentAt.IsZero() {
		return 0
	}
	return w.sentAt.Add(gathering(w.membership.group.campaign.options)).Sub(now)
}

// write writes the table if it still is as v has it, after its keys if their names are not published yet, and reports
// whether that is certain.
func (w *tableWriter) write(ctx context.Context, v view, next *shards.Table, names []string) (bool, error) {
	text, err := encodeTable(next)
	if err != nil {
		return false, err
	}
	g := w.membership.group
	if names != nil {
		if err := g.publish(ctx, next.Keys, names); err != nil {
			return false, err
		}
		g.mu.Lock()
		g.sets.addLocked(next.Keys, names)
		g.mu.Unlock()
	}
	w.sent, w.sentAt = text, v.now
	lease, err := w.send(ctx, v.table, text)
	if err != nil {
		return false, w.afterFailure(ctx, v.table, err)
	}
	w.sent = ""
	if r, err := readRecord(lease); err == nil {
		w.version = r.version
	}
	return true, w.membership.setTable(ctx, lease)
}

// encodeTable returns the table as an annotation has it. The error says that it is too large.
func encodeTable(t *shards.Table) (string, error) {
	if len(t.Entries) > maxKeys {
		return "", groupFault{"keys", fmt.Sprintf("the members know %d keys together, want at most %d",
			len(t.Entries), maxKeys)}
	}
	text := t.Encode()
	if len(text) > maxAnnotation {
		return "", groupFault{"size", fmt.Sprintf(
			"the table has %d bytes, want at most %d: too many keys in too many runs", len(text), maxAnnotation)}
	}
	return text, nil
}

// send makes the request that creates the table, or changes it if it still is as t.
func (w *tableWriter) send(ctx context.Context, t tableView, text string) (*coordinationv1.Lease, error) {
	client := w.membership.group.client
	if t.exists {
		annotations := map[string]*string{tableAnnotation: &text}
		return client.patch(ctx, "write table", client.group, t.record, annotations, nil)
	}
	now := metav1.NewMicroTime(time.Now())
	return client.create(ctx, "create table", &coordinationv1.Lease{
		ObjectMeta: objectMeta(client.group, tableAnnotation, text),
		// No candidate takes it for a lease that is free.
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       new(client.tableHolder()),
			LeaseDurationSeconds: new(int32(maxTransitions)),
			AcquireTime:          &now, RenewTime: &now, LeaseTransitions: new(int32(0)),
		},
	})
}

// afterFailure reads the table after a write of it, as it was in t, has failed with err: what it is now decides. It
// returns err, or nil if somebody else has changed the table.
func (w *tableWriter) afterFailure(ctx context.Context, t tableView, err error) error {
	m := w.membership
	if lease, failed := m.group.client.get(ctx, "get table", m.group.client.group); failed == nil {
		m.setTable(ctx, lease)
	}
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	if conflicts(err) && m.table.record.version != t.record.version {
		return nil
	}
	return err
}

// A groupFault is why keys cannot be assigned, which no further try mends.
type groupFault struct{ kind, text string }

func (f groupFault) Error() string { return f.text }

// maxAnnotation is how long the text of a table may be, in bytes: all annotations of an object together have 256 KiB.
// Tests lower it.
var maxAnnotation = 250_000

// maxKeys is how many keys a table may have: a larger one could not be read back. Tests lower it.
var maxKeys = shards.MaxKeys
