package memstore

import (
	"fmt"

	"torus/store"
)

// failed says what was done to which layer, the first of chain; nil stays nil.
func failed(op string, chain []store.LayerID, off int64, err error) error {
	if err == nil {
		return nil
	}
	var id store.LayerID
	if len(chain) > 0 {
		id = chain[0]
	}
	return &store.Error{Op: op, Layer: id, Off: off, Err: err}
}

// checkIO accepts what one request may move.
func checkIO(off int64, n int) error {
	if n > store.MaxIO {
		return fmt.Errorf("%w: length %d is above %d", store.ErrInvalid, n, store.MaxIO)
	}
	return store.CheckRange(off, int64(n))
}

func checkRead(off int64, p []byte, info []store.PageInfo) error {
	if err := checkIO(off, len(p)); err != nil {
		return err
	}
	if pages := len(p) / store.PageSize; info != nil && len(info) < pages {
		return fmt.Errorf("%w: room for the info of %d pages, %d are read", store.ErrInvalid, len(info), pages)
	}
	return nil
}

func checkFlags(f store.Flags) error {
	if unknown := f &^ store.FlagSync; unknown != 0 {
		return fmt.Errorf("%w: flags %#x are not known", store.ErrInvalid, uint8(unknown))
	}
	return nil
}

func checkAdopt(e store.Extent, p []byte) error {
	if err := store.CheckRange(e.Off, e.N); err != nil {
		return err
	}
	switch {
	case e.Kind > store.Hole:
		return fmt.Errorf("%w: %v", store.ErrInvalid, e.Kind)
	case e.Kind == store.Data && e.N > store.MaxIO:
		return fmt.Errorf("%w: length %d is above %d", store.ErrInvalid, e.N, store.MaxIO)
	case e.Kind == store.Data && int64(len(p)) != e.N:
		return fmt.Errorf("%w: %d bytes for an extent of %d", store.ErrInvalid, len(p), e.N)
	case e.Kind != store.Data && len(p) != 0:
		return fmt.Errorf("%w: %d bytes for an extent of kind %v", store.ErrInvalid, len(p), e.Kind)
	case e.Kind == store.Absent && e.Version != 0:
		return fmt.Errorf("%w: absence with version %v", store.ErrInvalid, e.Version)
	}
	return nil
}
