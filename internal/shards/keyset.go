package shards

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

const (
	// MaxKeys is the most keys that a group or a member may have. A table or report with more cannot be read.
	MaxKeys = 1 << 20
	// maxKeyLength is the largest length of a key in bytes.
	maxKeyLength = 256
	// pageBytes is about how many bytes of keys a page has: as base64, which compression cannot always shorten,
	// they fit into the 256 KiB that the annotations of an object may have.
	pageBytes = 150_000
)

// SortKeys returns the keys in the order in which tables have them. The error says what is wrong with them.
func SortKeys(keys []string) ([]string, error) {
	if len(keys) > MaxKeys {
		return nil, fmt.Errorf("%d keys, want at most %d", len(keys), MaxKeys)
	}
	sorted := slices.Sorted(slices.Values(keys))
	for i, key := range sorted {
		switch {
		case key == "":
			return nil, errors.New("an empty key")
		case len(key) > maxKeyLength:
			return nil, fmt.Errorf("key %.40q… has %d bytes, want at most %d", key, len(key), maxKeyLength)
		case !utf8.ValidString(key):
			return nil, fmt.Errorf("key %q: want valid UTF-8", key)
		case i > 0 && key == sorted[i-1]:
			return nil, fmt.Errorf("key %q is there twice", key)
		}
	}
	return sorted, nil
}

// Digest names a set of sorted keys.
func Digest(keys []string) string {
	h := sha256.New()
	for _, key := range keys {
		h.Write(binary.AppendUvarint(nil, uint64(len(key))))
		h.Write([]byte(key))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// IsDigest reports whether text may be a digest.
func IsDigest(text string) bool {
	b, err := hex.DecodeString(text)
	return err == nil && len(b) == 16
}

// A page is a part of a set of keys.
type page struct {
	Pages int      `json:"pages"`
	Keys  []string `json:"keys"`
}

// Pages returns sorted keys as the annotations of one Lease or more have them.
func Pages(keys []string) []string {
	parts := [][]string{nil}
	size := 0
	for _, key := range keys {
		if size += len(key) + 3; size > pageBytes {
			parts, size = append(parts, nil), len(key)+3
		}
		last := &parts[len(parts)-1]
		*last = append(*last, key)
	}
	pages := make([]string, len(parts))
	for i, part := range parts {
		pages[i] = compress(page{len(parts), part})
	}
	return pages
}

// ReadPages returns the keys with a digest, whose pages read returns.
func ReadPages(digest string, read func(page int) (string, error)) ([]string, error) {
	var keys []string
	for i, pages := 0, 1; i < pages; i++ {
		text, err := read(i)
		if err != nil {
			return nil, err
		}
		var p page
		if err := decompress(text, &p); err != nil {
			return nil, fmt.Errorf("page %d of the keys cannot be read: %w", i, err)
		}
		if pages = p.Pages; pages < 1 || len(keys)+len(p.Keys) > MaxKeys {
			return nil, fmt.Errorf("page %d of the keys: %d pages, %d keys", i, pages, len(p.Keys))
		}
		keys = append(keys, p.Keys...)
	}
	if Digest(keys) != digest {
		return nil, errors.New("the keys are not those that they are said to be")
	}
	return keys, nil
}
