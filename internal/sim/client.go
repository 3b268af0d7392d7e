package sim

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycoordinationv1 "k8s.io/client-go/applyconfigurations/coordination/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/annotation"
	"github.com/leasehold-go/leasehold/internal/oracle"
)

// Leases returns k itself: there is one namespace in the world.
func (k *campaign) Leases(string) coordinationv1client.LeaseInterface { return k }

// reply tells the checker what k is told.
func (k *campaign) reply(l *coordinationv1.Lease, err error) (*coordinationv1.Lease, error) {
	if err == nil {
		k.world.checker.replied(k, l)
	}
	return l, err
}

func (k *campaign) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	k.world.checker.requested(k, "get")
	defer k.link.send()()
	return k.reply(k.LeaseInterface.Get(ctx, name, opts))
}

func (k *campaign) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	k.world.checker.requested(k, "watch")
	defer k.link.send()()
	return k.LeaseInterface.Watch(ctx, opts)
}

func (k *campaign) Create(
	ctx context.Context, l *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	k.world.checker.requested(k, "create")
	k.world.checker.claims(k, l.Spec.HolderIdentity, l.Spec.AcquireTime)
	defer k.link.send()()
	created, err := k.reply(k.LeaseInterface.Create(ctx, l, opts))
	k.world.checker.claimEnds(k, l.Spec.AcquireTime, err)
	return created, err
}

func (k *campaign) Apply(
	ctx context.Context, l *applycoordinationv1.LeaseApplyConfiguration, opts metav1.ApplyOptions,
) (*coordinationv1.Lease, error) {
	k.applies(l)
	defer k.link.send()()
	return k.reply(k.LeaseInterface.Apply(ctx, l, opts))
}

func (k *campaign) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	var acquired *metav1.MicroTime // of a claim
	if pt == types.ApplyYAMLPatchType {
		var l applycoordinationv1.LeaseApplyConfiguration
		if err := json.Unmarshal(data, &l); err != nil {
			k.world.checker.violation("%s: %v: %s", k.label, err, data)
		}
		k.applies(&l)
		acquired = l.Spec.AcquireTime
	} else {
		k.world.checker.requested(k, "patch")
		k.world.checker.patches(k, name, data)
	}
	defer k.link.send()()
	lease, err := k.reply(k.LeaseInterface.Patch(ctx, name, pt, data, opts, sub...))
	if acquired != nil {
		k.world.checker.claimEnds(k, acquired, err)
	}
	return lease, err
}

// applies checks that k sends a write that is to take the lease.
func (k *campaign) applies(l *applycoordinationv1.LeaseApplyConfiguration) {
	k.world.checker.requested(k, "apply")
	if meta := l.ObjectMetaApplyConfiguration; meta == nil || meta.ResourceVersion == nil ||
		*meta.ResourceVersion == "" ||
		meta.UID == nil || *meta.UID == "" {
		k.world.checker.violation("%s: claims the lease without a precondition", k.label)
	}
	k.world.checker.claims(k, l.Spec.HolderIdentity, l.Spec.AcquireTime)
}

// Delete is what WithDeleteOnRelease sends.
func (k *campaign) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	k.world.checker.requested(k, "delete")
	k.world.checker.deletesLease(k, name, opts.Preconditions)
	defer k.link.send()()
	return k.LeaseInterface.Delete(ctx, name, opts)
}

// requested checks how many requests k sends, and when.
func (c *checker) requested(k *campaign, verb string) {
	c.mu.Lock()
	if second := int(c.world.now() / time.Second); second != k.second {
		k.second, k.requests = second, 0
	}
	k.requests++
	limit := (30 + int(4*time.Second/k.renewInterval)) * max(1, k.slots)
	if k.requests == limit+1 {
		c.violationLocked("%s: more than %d requests within a second", k.label, limit)
	}
	if k.over {
		c.violationLocked("%s: %s after the loop was left", k.label, verb)
	}
	tooMany := k.requests > limit
	c.lookLocked()
	c.mu.Unlock()
	if tooMany {
		time.Sleep(time.Second) // else the world would never end
	}
}

// replied records what k knows.
func (c *checker) replied(k *campaign, l *coordinationv1.Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.uids[l.UID] = true
	if key, held := oracle.KeyOf(l); held {
		k.told[key] = true
	}
}

// claims checks that k sends a write that is to take the lease.
func (c *checker) claims(k *campaign, identity *string, acquired *metav1.MicroTime) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := k.session; x != nil && x.running {
		c.violationLocked("%s: claims the lease while its body runs", k.label)
	}
	key := claim{k.name, "", oracle.Micros(acquired)}
	if identity != nil {
		key.identity = *identity
	}
	c.claimants[key] = k
	k.sent[key.acquired] = sendTime{k.clock.Now(), c.world.now()}
	c.lookForTwinsLocked()
}

// claimEnds records how a claim of k ended.
func (c *checker) claimEnds(k *campaign, acquired *metav1.MicroTime, err error) {
	var status apierrors.APIStatus
	refused := errors.As(err, &status) && status.Status().Code < 500 &&
		!apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
	if err == nil || refused {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubtful = append(c.doubtful, claim{k.name, k.identity, oracle.Micros(acquired)})
	c.lookForTwinsLocked()
}

// lookForTwinsLocked ends the world, in which nothing is judged any more, if a claim whose outcome its sender does not
// know looks like another process's: the sender takes that for its own, which is a limit of the protocol
// (docs/safety.md, "Duplicate identities and lost claims").
func (c *checker) lookForTwinsLocked() {
	for _, d := range c.doubtful {
		for other := range c.claimants {
			if d.identity == other.identity && d.acquired == other.acquired && d.client != other.client {
				c.log(d.client, "cannot tell its claim from that of %s: the world ends", other.client)
				c.twins = true
				c.world.stop()
				return
			}
		}
	}
}

// patches checks that k sends a renewal or a release.
func (c *checker) patches(k *campaign, lease string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var patch struct {
		Metadata struct {
			ResourceVersion string             `json:"resourceVersion"`
			Annotations     map[string]*string `json:"annotations"`
		} `json:"metadata"`
		Spec *struct {
			RenewTime *metav1.MicroTime `json:"renewTime"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(data, &patch); err != nil {
		c.violationLocked("%s: %v: %s", k.label, err, data)
	}
	version, _ := strconv.ParseUint(patch.Metadata.ResourceVersion, 10, 64)
	if version == 0 {
		c.violationLocked("%s: a write without a precondition: %s", k.label, data)
		return
	}
	if _, stands := patch.Metadata.Annotations[annotation.Standby]; patch.Spec == nil && stands && k.priority != nil {
		return // it stands by, or leaves
	}
	if patch.Spec == nil {
		c.violationLocked("%s: a patch that is none of a holder's or a standby's: %s", k.label, data)
		return
	}
	renews := patch.Spec.RenewTime != nil
	if renews {
		k.sent[oracle.Micros(patch.Spec.RenewTime)] = sendTime{k.clock.Now(), c.world.now()}
	}
	t := c.termOf(c.oracles[lease].At(version))
	if t == nil || t.campaign != k {
		c.violationLocked("%s: writes about a term that is not its own: %s", k.label, data)
		return
	}
	if t.session == nil {
		return
	}
	loss, trust := c.world.hooks.Loss(t.session.Session), t.trust()
	switch {
	case loss != nil || trust <= 0:
		c.violationLocked("%s: writes after its loss (%v, trust for %v): %s", k.label, loss, trust, data)
	case !renews && t.session.running:
		c.violationLocked("%s: releases while the body runs", k.label)
	}
}

// deletesLease checks that k sends a deletion: of a Lease that nobody holds, as k itself left it.
func (c *checker) deletesLease(k *campaign, lease string, only *metav1.Preconditions) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if only == nil || only.UID == nil || only.ResourceVersion == nil {
		c.violationLocked("%s: deletes the Lease without a precondition", k.label)
		return
	}
	version, _ := strconv.ParseUint(*only.ResourceVersion, 10, 64)
	if o := c.oracles[lease]; !o.Known(version) || o.At(version) != nil {
		c.violationLocked("%s: deletes version %d of the Lease, which is held", k.label, version)
	}
}
