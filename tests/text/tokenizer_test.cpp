#include "dalle/text/tokenizer.h"

#include <archive.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

