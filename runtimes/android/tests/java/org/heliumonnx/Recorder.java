package org.heliumonnx;

import java.util.ArrayList;
import java.util.List;

/** Keeps what a listener hears. */
class Recorder implements TextListener {
    final List<String> pieces = new ArrayList<>();
    final List<Integer> ids = new ArrayList<>();
    final List<Long> prefill = new ArrayList<>();

    @Override
    public boolean onText(String text) {
        pieces.add(text);
        return true;
    }

    @Override
    public boolean onToken(int id) {
        ids.add(id);
        return true;
    }

    @Override
    public boolean onPrefill(long done, long of) {
        prefill.add(done);
        prefill.add(of);
        return true;
    }

    String text() {
        return String.join("", pieces);
    }
}
