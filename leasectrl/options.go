package leasectrl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// A KeyFunc returns the key of the object that a request is about: what the object's bucket is found by. Replicas must
// agree about it. An error is that of the reconcile, which is tried again; one that means "not found"
// (apierrors.IsNotFound) leaves the request out.
type KeyFunc func(context.Context, reconcile.Request) (string, error)

// NamespacedName is the KeyFunc that Reconciler and Source use by default: namespace/name, or the name alone where the
// object has no namespace.
func NamespacedName(_ context.Context, req reconcile.Request) (string, error) {
	if req.Namespace == "" {
		return req.Name, nil
	}
	return req.String(), nil
}

// Hashed returns a KeyFunc whose keys are hashes of those of key. A bucket is a range of 64-bit FNV-1a hashes, and keys
// that differ in their last two characters alone, as names with a number at the end do, have hashes that are near each
// other: they would be in few buckets. Where there is a Share, the API server decides how keys are hashed.
func Hashed(key KeyFunc) KeyFunc {
	return func(ctx context.Context, req reconcile.Request) (string, error) {
		name, err := key(ctx, req)
		if err != nil {
			return "", err
		}
		hash := sha256.Sum256([]byte(name))
		return hex.EncodeToString(hash[:]), nil
	}
}

// Namespace is a KeyFunc with which all objects of a namespace are in one bucket.
func Namespace(_ context.Context, req reconcile.Request) (string, error) { return req.Namespace, nil }

// An Option is one of Reconciler and Source. Give both the same.
type Option func(*options)

type options struct {
	key   KeyFunc
	share *Share // nil where the cache holds everything
}

func newOptions(opts []Option) options {
	o := options{key: NamespacedName}
	for _, opt := range opts {
		opt(&o)
	}
	if o.share != nil {
		o.key = o.share.key
	}
	return o
}

// WithKey sets how the key of an object is found: NamespacedName by default.
func WithKey(key KeyFunc) Option { return func(o *options) { o.key = key } }

// WithShare says that the cache holds only the share of this replica. The share finds the keys, whatever WithKey says.
func WithShare(share *Share) Option { return func(o *options) { o.share = share } }
