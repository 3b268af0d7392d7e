package leasehold

import (
	"context"
	"log/slog"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// heldLease returns a Lease as a leader writes it.
func heldLease() *coordinationv1.Lease {
	at := metav1.NewMicroTime(time.Date(2026, 5, 1, 12, 0, 0, 123456000, time.UTC))
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "0b9a4a5e-6d7c-4c9d-9c55-0d7f1c6b2f10",
			ResourceVersion: "123456"},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: new("a"), LeaseDurationSeconds: new(int32(15)), AcquireTime: &at, RenewTime: &at,
			LeaseTransitions: new(int32(3)),
		},
	}
}

func heldRecord(b *testing.B) record {
	r, err := readRecord(heldLease())
	if err != nil {
		b.Fatal(err)
	}
	return r
}

func BenchmarkReadRecord(b *testing.B) {
	b.ReportAllocs()
	lease := heldLease()
	for b.Loop() {
		if _, err := readRecord(lease); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkObserve measures a standby that sees a renewal and computes when it may acquire the lease.
func BenchmarkObserve(b *testing.B) {
	b.ReportAllocs()
	ours := func(term) bool { return false }
	r, now := heldRecord(b), time.Now()
	o := observe(&observation{}, &r, now, D, ours)
	for b.Loop() {
		r.version++
		r.renewed = r.renewed.Add(I)
		now = now.Add(I)
		o = observe(&o, &r, now, D, ours)
		if !o.acquirableAt(ours).Equal(now.Add(D)) {
			b.Fatal("acquirable at another time")
		}
	}
}

// BenchmarkTermOver measures a leader that sees its own renewal.
func BenchmarkTermOver(b *testing.B) {
	b.ReportAllocs()
	r := heldRecord(b)
	t := r.term()
	for b.Loop() {
		if err := t.over(&r, D); err != nil {
			b.Fatal(err)
		}
	}
}

// An echoingLease answers every patch at once, with the same Lease.
type echoingLease struct {
	coordinationv1client.LeaseInterface
	lease *coordinationv1.Lease
}

func (e echoingLease) Patch(
	context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string,
) (*coordinationv1.Lease, error) {
	return e.lease, nil
}

// BenchmarkMergePatch is of the request that renews, without the client and the server: its body, and the reading of
// its answer.
func BenchmarkMergePatch(b *testing.B) {
	b.ReportAllocs()
	l := &leaseClient{leases: echoingLease{lease: heldLease()}, namespace: ns, name: name, identity: "a", duration: D,
		fieldManager: "leasehold"}
	r, stamp := heldRecord(b), time.Now().UTC()
	for b.Loop() {
		if _, err := l.renew(b.Context(), r, stamp); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRenewal is of all that a renewal does, the Lease API in memory and the watch event included.
func BenchmarkRenewal(b *testing.B) {
	b.ReportAllocs()
	o, err := newOptions(b.Context(), []Option{
		WithLease(name), WithNamespace(ns), WithIdentity("a"), WithClient(leasetest.NewServer().Client("a")),
		WithDuration(time.Hour), // so that the renewer does not renew by itself
		WithLogger(slog.New(slog.DiscardHandler)),
	})
	if err != nil {
		b.Fatal(err)
	}
	c, err := newCampaign(b.Context(), o, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer campaigns{c}.close()
	c.start()
	s, err := newCandidates(campaigns{c}).await(c.ctx)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r := c.store.latest().record
		stamp := c.claims.stamps.forRenewal(r)
		if _, err := c.write(b.Context(), "renew", func(ctx context.Context) (record, error) {
			return c.lease.renew(ctx, r, stamp)
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.finish(); err != nil {
		b.Error(err)
	}
}
